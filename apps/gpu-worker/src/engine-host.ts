import type { Config, Logger, ModelEntry, WorkerMetrics } from '@atelier/shared';
import type {
  Device,
  Engine,
  EngineImage,
  EngineProgressListener,
  EngineRequest,
  LoadOptions,
} from './engine.ts';

export interface EngineHostOptions {
  config: Pick<
    Config,
    'ATELIER_CACHE_DIR' | 'ATELIER_ENGINE_MEMORY_BYTES' | 'ATELIER_ENGINE_PROVIDER' | 'ATELIER_ENGINE_THREADS'
  >;
  spawn: (onLog: (line: string) => void) => Engine;
  metrics: WorkerMetrics;
  log: Logger;
}

/**
 * Owns the engine process: starts it when it is needed, keeps one model resident, and starts it again after it
 * died. A process that failed in a way that may have left it broken is ended rather than trusted again.
 */
export class EngineHost {
  readonly #options: EngineHostOptions;
  #engine: Engine | null = null;
  #resident: string | null = null;
  #device: Device | null = null;
  /** Processes that were told to end; the end of any other is a crash. */
  readonly #dismissed = new WeakSet<Engine>();

  constructor(options: EngineHostOptions) {
    this.#options = options;
  }

  /** Name of the model that the running process holds. */
  get resident(): string | null {
    return this.#resident;
  }

  /** Where the latest process computes; null until it has loaded a model. */
  get device(): Device | null {
    return this.#device;
  }

  /**
   * Makes `model` the resident one.
   * @returns milliseconds spent; 0 when it was there already
   * @throws FluxError of the engine's load; the process is ended then
   */
  async ensure(model: ModelEntry): Promise<number> {
    if (this.#engine && this.#resident === model.name) return 0;
    const { config, metrics, log } = this.#options;
    const engine = (this.#engine ??= this.#spawn());
    this.#resident = null;
    const started = performance.now();
    const threads = config.ATELIER_ENGINE_THREADS;
    const memory = config.ATELIER_ENGINE_MEMORY_BYTES;
    const options: LoadOptions = {
      name: model.name,
      files: model.files,
      cacheDir: config.ATELIER_CACHE_DIR,
      maxSequenceLength: model.defaults.max_sequence_length,
      ...(model.quantize ? { placement: model.quantize } : {}),
      provider: config.ATELIER_ENGINE_PROVIDER,
      ...(threads === undefined ? {} : { threads }),
      ...(memory === undefined ? {} : { deviceBytes: memory }),
    };
    try {
      const { device, residency } = await engine.load(options);
      this.#device = device;
      log.info({ ...device, residency: residency?.rows }, 'device');
    } catch (error) {
      this.kill();
      throw error;
    }
    const ms = performance.now() - started;
    this.#resident = model.name;
    metrics.modelLoad.observe({ model: model.name }, ms / 1_000);
    log.info({ model: model.name, load_ms: Math.round(ms), engine_pid: engine.pid }, 'model loaded');
    return ms;
  }

  /** One picture from the resident model. @throws FluxError */
  generate(
    request: EngineRequest,
    options: { onProgress: EngineProgressListener; signal: AbortSignal },
  ): Promise<EngineImage> {
    if (!this.#engine) return Promise.reject(new Error('ensure() comes before generate()'));
    return this.#engine.generate(request, options);
  }

  /** Ends the process at once; what it was doing rejects with `engine_crashed`. The next job gets a new one. */
  kill(): void {
    const engine = this.#dismiss();
    engine?.kill();
  }

  /** Ends the process between two steps, or at once when it has not reached one after `graceMs`. */
  async close(graceMs: number): Promise<void> {
    const engine = this.#dismiss();
    if (!engine) return;
    const timer = setTimeout(() => engine.kill(), graceMs);
    await engine.close().finally(() => clearTimeout(timer));
  }

  #dismiss(): Engine | null {
    const engine = this.#engine;
    if (engine) this.#dismissed.add(engine);
    this.#engine = null;
    this.#resident = null;
    return engine;
  }

  #spawn(): Engine {
    const { spawn, log } = this.#options;
    const engine = spawn((line) => log.info({ engine_pid: engine.pid, line }, 'engine output'));
    void this.#watch(engine);
    return engine;
  }

  async #watch(engine: Engine): Promise<void> {
    const { metrics, log } = this.#options;
    const { code, signal } = await engine.exited;
    if (this.#dismissed.has(engine)) return;
    log.error({ engine_pid: engine.pid, code, signal }, 'the engine process ended unexpectedly');
    metrics.engineCrashes.inc();
    if (this.#engine === engine) this.#dismiss();
  }
}
