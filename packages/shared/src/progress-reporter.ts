import type { Progress } from './contracts/job.ts';

const INTERVAL_MS = 250;

/**
 * Writes the newest progress at most four times a second, one write at a time: a slow store delays progress, never
 * the engine.
 */
export class ProgressReporter {
  readonly #write: (progress: Progress) => Promise<void>;
  #pending: Progress | null = null;
  #writing = false;
  #lastAt = -Infinity;
  #timer: NodeJS.Timeout | null = null;
  #stopped = false;

  constructor(write: (progress: Progress) => Promise<void>) {
    this.#write = write;
  }

  /** `urgent` (a phase began) does not wait for the interval. */
  report(progress: Progress, urgent = false): void {
    if (this.#stopped) return;
    this.#pending = progress;
    this.#schedule(urgent ? 0 : this.#lastAt + INTERVAL_MS - performance.now());
  }

  /** Drops what was not written. */
  stop(): void {
    this.#stopped = true;
    if (this.#timer) clearTimeout(this.#timer);
  }

  #schedule(delay: number): void {
    if (this.#writing) return;
    if (delay <= 0) return void this.#flush();
    this.#timer ??= setTimeout(() => void this.#flush(), delay);
  }

  async #flush(): Promise<void> {
    if (this.#timer) clearTimeout(this.#timer);
    this.#timer = null;
    const progress = this.#pending;
    if (!progress || this.#stopped) return;
    this.#pending = null;
    this.#writing = true;
    this.#lastAt = performance.now();
    // A write that failed is superseded by the next one.
    await this.#write(progress).catch(() => {});
    this.#writing = false;
    if (this.#pending) this.#schedule(this.#lastAt + INTERVAL_MS - performance.now());
  }
}
