import { UnrecoverableError, WaitingError } from 'bullmq';
import type { Job } from 'bullmq';
import { FluxError } from '@atelier/flux';
import { codeLabel, newAttemptToken, toJobError } from '@atelier/shared';
import type {
  Attempt,
  Config,
  GenerationRecord,
  JobRef,
  QueuePayload,
  StoredImage,
  WorkerMetrics,
} from '@atelier/shared';
import { runAttempt } from './attempt.ts';
import type { AttemptDeps, Phase, StopReason } from './attempt.ts';

export interface ProcessorDeps extends AttemptDeps {
  config: Pick<Config, 'ATELIER_CANCEL_GRACE_MS'>;
  metrics: WorkerMetrics;
  workerId: string;
  /** Told which job runs, and null when none does. */
  onCurrent: (id: string | null) => void;
}

type JobOutcome = 'succeeded' | 'failed' | 'canceled' | 'retried' | 'given_back' | 'superseded' | 'skipped';

interface Running {
  attempt: Attempt;
  stop: AbortController;
}

/**
 * Executes one job of the queue after the other. The record decides what happened, the queue only whether the job
 * comes again: so each ending is written to the record first, and the queue is told second. A crash between the two
 * makes the queue hand the job out once more, and `start` finds it ended.
 */
export class GenerationProcessor {
  readonly #deps: ProcessorDeps;
  #running: Running | null = null;

  constructor(deps: ProcessorDeps) {
    this.#deps = deps;
  }

  /** Tells the running attempt to stop; without effect when another job, or none, runs. */
  stop(reason: StopReason, job?: JobRef): void {
    const running = this.#running;
    if (!running || (job && (job.id !== running.attempt.id || job.tenant !== running.attempt.tenant))) return;
    running.stop.abort(reason);
  }

  /** The processor of the BullMQ worker. `token` is the queue's lock. */
  async process(job: Job<QueuePayload, void>, token?: string): Promise<void> {
    const { jobs, metrics, workerId, onCurrent } = this.#deps;
    const attempt: Attempt = { tenant: job.data.tenant, id: job.data.id, token: newAttemptToken() };
    const log = this.#deps.log.child({ job_id: attempt.id });
    const claimed = performance.now();
    const { result, record } = await jobs.start(attempt, workerId);
    if (result !== 'done' || record.status !== 'running' || record.kind !== 'generation') {
      // Ended already: canceled while it waited, or published by an attempt that could not tell the queue.
      log.info({ result, status: record?.status }, 'nothing to do');
      this.#count(record?.status === 'canceled' ? 'canceled' : 'skipped');
      return;
    }
    log.info(
      { attempt: record.attempts, model: record.input.model, steps: record.input.steps },
      'job started',
    );

    const stop = new AbortController();
    this.#running = { attempt, stop };
    metrics.busy.set(1);
    onCurrent(attempt.id);
    const killer = this.#killWhenIgnored(stop.signal);
    const images: StoredImage[] = [];
    let published = false;
    try {
      const spent = await runAttempt({ ...this.#deps, log }, record, attempt, stop, images);
      published = await this.#publish(record, attempt, images, spent, claimed, log);
    } catch (error) {
      await this.#ended(error, job, token, attempt, stop.signal, log);
    } finally {
      killer();
      this.#running = null;
      metrics.busy.set(0);
      onCurrent(null);
      // Not awaited: the job is settled, and nothing points at these objects.
      if (!published) for (const { key } of images) this.#deps.store.delete(key).catch(() => {});
    }
  }

  /** Whether this attempt's images are the job's result now. */
  async #publish(
    record: GenerationRecord,
    attempt: Attempt,
    images: StoredImage[],
    spent: Record<Phase, number>,
    claimed: number,
    log: AttemptDeps['log'],
  ): Promise<boolean> {
    const { jobs, metrics } = this.#deps;
    const elapsed = performance.now() - claimed;
    const engine = spent.load_ms + spent.style_ms + spent.text_ms + spent.denoise_ms + spent.decode_ms;
    const timings = {
      queue_ms: Date.parse(record.started_at!) - Date.parse(record.created_at),
      ...spent,
      overhead_ms: elapsed - engine,
      total_ms: elapsed,
    };
    const rounded = Object.fromEntries(Object.entries(timings).map(([name, ms]) => [name, tenths(ms)]));
    const { result } = await jobs.publish(attempt, images, rounded);
    if (result !== 'done') {
      log.warn('another attempt took over; this result is dropped');
      this.#count('superseded');
      return false;
    }
    const overheadMs = performance.now() - claimed - engine;
    metrics.overhead.observe(overheadMs / 1_000);
    metrics.observe(timings);
    this.#count('succeeded');
    log.info({ ...rounded, overhead_ms: tenths(overheadMs) }, 'job succeeded');
    return true;
  }

  /** Writes how the attempt ended, then throws what makes the queue do the same. */
  async #ended(
    error: unknown,
    job: Job<QueuePayload, void>,
    token: string | undefined,
    attempt: Attempt,
    signal: AbortSignal,
    log: AttemptDeps['log'],
  ): Promise<void> {
    const { jobs } = this.#deps;
    if (signal.aborted) {
      const reason = signal.reason as StopReason;
      switch (reason) {
        case 'cancel':
          await jobs.cancel(attempt);
          log.info('job canceled');
          return this.#count('canceled');
        case 'superseded':
          log.warn('another attempt took over; this one stops');
          return this.#count('superseded');
        case 'give_back': {
          const { record } = await jobs.giveBack(attempt);
          this.#count(record?.status === 'canceled' ? 'canceled' : 'given_back');
          log.info({ status: record?.status }, 'job given back');
          if (record?.status !== 'queued') return;
          await job.moveToWait(token);
          throw new WaitingError();
        }
        default: {
          const never: never = reason;
          throw new Error(`unknown reason ${String(never)}`);
        }
      }
    }
    const jobError = toJobError(error, error instanceof FluxError ? error.code : null);
    // The allocator of a process that ran out of memory cannot be trusted with the next job.
    if (jobError.code === 'gpu_out_of_memory') this.#deps.engine.kill();
    const last = job.attemptsMade + 1 >= (job.opts.attempts ?? 1);
    if (jobError.retryable && !last) {
      const { record } = await jobs.retry(attempt);
      log.warn(
        { err: error, code: jobError.code, attempt: record?.attempts },
        'attempt failed, trying again',
      );
      this.#count(record?.status === 'canceled' ? 'canceled' : 'retried', jobError.code);
      if (record?.status !== 'queued') return;
      throw error;
    }
    await jobs.fail(attempt, jobError);
    log.error({ err: error, code: jobError.code }, 'job failed');
    this.#count('failed', jobError.code);
    throw new UnrecoverableError(jobError.message);
  }

  /** An engine that does not reach its next step in time is killed; a worker that shuts down has no time left. */
  #killWhenIgnored(signal: AbortSignal): () => void {
    let timer: NodeJS.Timeout | undefined;
    const onAbort = (): void => {
      const graceMs = signal.reason === 'give_back' ? 0 : this.#deps.config.ATELIER_CANCEL_GRACE_MS;
      timer = setTimeout(() => this.#deps.engine.kill(), graceMs);
    };
    signal.addEventListener('abort', onAbort, { once: true });
    return () => {
      signal.removeEventListener('abort', onAbort);
      clearTimeout(timer);
    };
  }

  #count(outcome: JobOutcome, code = ''): void {
    this.#deps.metrics.jobs.inc({ kind: 'generation', outcome, code: code && codeLabel(code) });
  }
}

const tenths = (ms: number): number => Math.round(ms * 10) / 10;
