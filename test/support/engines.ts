import { setTimeout as sleep } from 'node:timers/promises';
import { FluxError } from '@atelier/flux';
import type { EngineExit, EngineImage, EngineProcess, EngineRequest } from '@atelier/flux';
import type { Engine } from '../../apps/gpu-worker/src/engine.ts';

/**
 * Not an engine: paints the seed's colour without a model, in no time or `stepMs` a step. For tests of what happens
 * around an engine, where the picture does not matter.
 */
export class InstantEngine implements Engine {
  readonly pid = 0;
  readonly exited: Promise<EngineExit>;
  readonly requests: EngineRequest[] = [];
  readonly #stepMs: number;
  readonly #death = new AbortController();
  #exit: (exit: EngineExit) => void = () => {};

  constructor(options: { stepMs?: number } = {}) {
    this.#stepMs = options.stepMs ?? 0;
    this.exited = new Promise((resolve) => (this.#exit = resolve));
  }

  async load(): ReturnType<Engine['load']> {
    const device = { provider: 'cpu' as const, name: null, reason: 'an instant engine', memory: null };
    return { loadMs: 0, device, residency: null };
  }

  async generate(
    request: EngineRequest,
    options: Parameters<EngineProcess['generate']>[1] = {},
  ): Promise<EngineImage> {
    this.requests.push(request);
    const { width, height, steps, seed } = request;
    for (let step = 1; step <= steps; step++) {
      if (this.#stepMs > 0)
        await sleep(this.#stepMs, undefined, { signal: this.#death.signal }).catch(() => {});
      if (this.#death.signal.aborted) throw new FluxError('engine_crashed', 'the engine process was killed');
      options.onProgress?.({ phase: 'denoise', step, steps });
      await this.onStep(step);
      if (options.signal?.aborted)
        throw new FluxError('canceled', `canceled after ${step} of ${steps} steps`);
    }
    const pixels = new Uint8Array(width * height * 3).fill(seed % 256);
    return {
      pixels,
      width,
      height,
      seed,
      timings: { style_ms: 0, text_ms: 0, denoise_ms: 0, decode_ms: 0, total_ms: 0 },
    };
  }

  async close(): Promise<void> {
    this.#end({ code: 0, signal: null });
  }

  kill(): void {
    this.#end({ code: null, signal: 'SIGKILL' });
  }

  /** For subclasses that misbehave at a step. */
  protected async onStep(_step: number): Promise<void> {}

  #end(exit: EngineExit): void {
    this.#death.abort();
    this.#exit(exit);
  }
}

/** An InstantEngine that fails with `code` at its third step; `engine_crashed` ends the process like a real crash. */
export class FailingEngine extends InstantEngine {
  readonly #code: FluxError['code'];

  constructor(code: FluxError['code'], options: { stepMs?: number } = {}) {
    super(options);
    this.#code = code;
  }

  protected override async onStep(step: number): Promise<void> {
    if (step !== 3) return;
    if (this.#code === 'engine_crashed') this.kill();
    throw new FluxError(this.#code, `failed on purpose with ${this.#code}`);
  }
}

/** An InstantEngine that never reaches the step after `step`, nor looks at its signal: only a kill ends it. */
export class HangingEngine extends InstantEngine {
  protected override onStep(step: number): Promise<void> {
    return step === 2
      ? this.exited.then(() => Promise.reject(new FluxError('engine_crashed', 'killed')))
      : Promise.resolve();
  }
}
