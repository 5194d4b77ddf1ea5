import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { createInterface } from 'node:readline';
import { FluxError } from '../errors.ts';
import type { EngineImage, EngineRequest } from '../pipeline.ts';
import type { TrainEvent, TrainResult } from '../training/train.ts';
import type {
  EngineLoadOptions,
  EngineTrainRequest,
  EngineProgress,
  EngineStats,
  FromEngine,
  LoadResult,
  ToEngine,
} from './protocol.ts';

export interface SpawnOptions {
  /** Receives each line that the process writes to stdout or stderr. */
  onLog?: (line: string) => void;
}

export interface EngineExit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A request without its id. */
type Task =
  | { type: 'load'; options: EngineLoadOptions }
  | { type: 'generate'; request: EngineRequest }
  | { type: 'train'; request: EngineTrainRequest }
  | { type: 'stats' };

interface Pending {
  resolve: (value: never) => void;
  reject: (error: FluxError) => void;
  onMessage: (message: FromEngine) => void;
}

/**
 * The parent's side of an engine process. A graph run blocks its thread and may take the process down with it, so
 * it happens in a child: the parent keeps renewing locks, and a crash costs one attempt. Requests are answered in
 * order; when the process dies, those still open reject with `engine_crashed`.
 */
export class EngineProcess {
  readonly exited: Promise<EngineExit>;
  readonly #child: ChildProcess;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #gone: EngineExit | null = null;

  private constructor(child: ChildProcess, options: SpawnOptions) {
    this.#child = child;
    for (const stream of [child.stdout, child.stderr])
      if (stream) createInterface(stream).on('line', (line) => options.onLog?.(line));
    child.on('message', (message: FromEngine) => this.#receive(message));
    this.exited = new Promise((resolve) => {
      const end = (exit: EngineExit): void => {
        if (this.#gone) return;
        this.#gone = exit;
        for (const { reject } of this.#pending.values()) reject(crashed(exit));
        this.#pending.clear();
        resolve(exit);
      };
      child.once('exit', (code, signal) => end({ code, signal }));
      child.once('error', () => end({ code: null, signal: null }));
    });
  }

  static spawn(options: SpawnOptions = {}): EngineProcess {
    const child = fork(fileURLToPath(new URL('./engine-child.ts', import.meta.url)), {
      serialization: 'advanced',
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      execArgv: [],
    });
    return new EngineProcess(child, options);
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Loads a model, releasing the one before. `onProgress` reports bytes while weights are prepared. */
  load(
    options: EngineLoadOptions,
    onProgress?: (progress: { done: number; total: number }) => void,
  ): Promise<LoadResult> {
    return this.#request<LoadResult>({ type: 'load', options }, (message) => {
      if (message.type === 'load-progress') onProgress?.({ done: message.done, total: message.total });
    });
  }

  /**
   * Makes one picture. An aborted signal is obeyed between steps.
   * @throws FluxError canceled, request_invalid, engine_failed, engine_crashed, out_of_memory
   */
  generate(
    request: EngineRequest,
    options: { onProgress?: (progress: EngineProgress) => void; signal?: AbortSignal } = {},
  ): Promise<EngineImage> {
    return this.#cancelable<EngineImage>({ type: 'generate', request }, options.signal, (message) => {
      if (message.type === 'progress') options.onProgress?.(message.progress);
    });
  }

  /**
   * Trains a LoRA; the model that was loaded for pictures is released. An aborted signal ends the training at its
   * next step with a checkpoint.
   * @throws FluxError canceled (its details name the checkpoint), dataset_invalid, request_invalid, engine_crashed
   */
  train(
    request: EngineTrainRequest,
    options: { onEvent?: (event: TrainEvent) => void; signal?: AbortSignal } = {},
  ): Promise<TrainResult> {
    return this.#cancelable<TrainResult>({ type: 'train', request }, options.signal, (message) => {
      if (message.type === 'train-event') options.onEvent?.(message.event);
    });
  }

  stats(): Promise<EngineStats> {
    return this.#request<EngineStats>({ type: 'stats' });
  }

  /** Ends the process once it is idle between two steps. */
  async close(): Promise<void> {
    this.#post({ type: 'close' });
    await this.exited;
  }

  /** Ends the process at once. */
  kill(): void {
    this.#child.kill('SIGKILL');
  }

  #cancelable<Value>(
    message: Task,
    signal: AbortSignal | undefined,
    onMessage: (message: FromEngine) => void,
  ): Promise<Value> {
    if (signal?.aborted) return Promise.reject(new FluxError('canceled', 'canceled before the first step'));
    const id = this.#nextId;
    const abort = (): void => this.#post({ type: 'cancel', id });
    signal?.addEventListener('abort', abort, { once: true });
    return this.#request<Value>(message, onMessage).finally(() =>
      signal?.removeEventListener('abort', abort),
    );
  }

  #request<Value>(message: Task, onMessage: (message: FromEngine) => void = () => {}): Promise<Value> {
    const id = this.#nextId++;
    if (this.#gone) return Promise.reject(crashed(this.#gone));
    return new Promise<Value>((resolve, reject) => {
      this.#pending.set(id, { resolve, reject, onMessage });
      this.#post({ ...message, id });
    });
  }

  #post(message: ToEngine): void {
    // A send to a dying process fails; its exit event rejects what is open.
    if (this.#child.connected) this.#child.send(message, () => {});
  }

  #receive(message: FromEngine): void {
    const pending = this.#pending.get(message.id);
    if (!pending) return;
    if (message.type === 'result') {
      this.#pending.delete(message.id);
      pending.resolve(message.value as never);
    } else if (message.type === 'error') {
      this.#pending.delete(message.id);
      const { code, message: text, details } = message.error;
      pending.reject(new FluxError(code, text, { details }));
    } else {
      pending.onMessage(message);
    }
  }
}

function crashed({ code, signal }: EngineExit): FluxError {
  const how = signal ? `was killed by ${signal}` : `ended with code ${code}`;
  return new FluxError('engine_crashed', `the engine process ${how}`, { details: { code, signal } });
}
