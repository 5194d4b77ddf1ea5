import { rm } from 'node:fs/promises';
import { FluxError } from '@atelier/flux';
import { codeLabel, newAttemptToken, toJobError } from '@atelier/shared';
import type { Attempt, Config, JobRef, QueuePayload, WorkerMetrics } from '@atelier/shared';
import { UnrecoverableError, WaitingError } from 'bullmq';
import type { Job } from 'bullmq';
import { attemptFolder } from './attempt-folder.ts';
import { runAttempt } from './attempt.ts';
import type { AttemptDeps, StopReason } from './attempt.ts';
import { Checkpoints } from './checkpoints.ts';
import type { Engine } from './engine.ts';

export interface ProcessorDeps extends AttemptDeps {
  config: AttemptDeps['config'] & Pick<Config, 'ATELIER_CANCEL_GRACE_MS' | 'ATELIER_SHUTDOWN_GRACE_MS'>;
  spawnEngine: (onLog: (line: string) => void) => Engine;
  metrics: WorkerMetrics;
  workerId: string;
  /** Told which job runs, and null when none does. */
  onCurrent: (id: string | null) => void;
}

type JobOutcome = 'succeeded' | 'failed' | 'canceled' | 'retried' | 'given_back' | 'superseded' | 'skipped';

/**
 * Executes one training after the other, each in an engine process of its own, so that none finds memory that the
 * one before has left. As with generations, each ending is written to the record first and told to the queue second.
 */
export class TrainingProcessor {
  readonly #deps: ProcessorDeps;
  #running: { attempt: Attempt; stop: AbortController } | null = null;

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
    const { config, jobs, metrics, spawnEngine, workerId, onCurrent } = this.#deps;
    const attempt: Attempt = { tenant: job.data.tenant, id: job.data.id, token: newAttemptToken() };
    const log = this.#deps.log.child({ job_id: attempt.id });
    const { result, record } = await jobs.start(attempt, workerId);
    if (result !== 'done' || record.status !== 'running' || record.kind !== 'training') {
      log.info({ result, status: record?.status }, 'nothing to do');
      this.#count(record?.status === 'canceled' ? 'canceled' : 'skipped');
      return;
    }
    log.info({ attempt: record.attempts, model: record.input.model, lora: record.input.name }, 'job started');

    const stop = new AbortController();
    this.#running = { attempt, stop };
    metrics.busy.set(1);
    onCurrent(attempt.id);
    const engine = spawnEngine((line) => log.info({ line }, 'engine output'));
    const killer = this.#killWhenIgnored(stop.signal, engine);
    let folder: string | null = null;
    try {
      folder = await attemptFolder(config.ATELIER_CACHE_DIR, attempt);
      const lora = await runAttempt({ ...this.#deps, log }, record, attempt, stop, engine, folder);
      const outcome = await jobs.publishLora(attempt, lora);
      this.#count(outcome.result === 'done' ? 'succeeded' : 'superseded');
      log.info({ lora, result: outcome.result }, 'training finished');
    } catch (error) {
      await this.#ended(error, job, token, attempt, stop.signal, log);
    } finally {
      killer();
      engine.kill();
      this.#running = null;
      metrics.busy.set(0);
      onCurrent(null);
      if (folder !== null)
        await rm(folder, { recursive: true, force: true }).catch((err: unknown) =>
          log.warn({ err }, 'cleanup'),
        );
      await this.#clearEnded(attempt, log);
    }
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
    const last = job.attemptsMade + 1 >= (job.opts.attempts ?? 1);
    if (jobError.retryable && !last) {
      const { record } = await jobs.retry(attempt);
      log.warn({ err: error, code: jobError.code }, 'attempt failed, trying again');
      this.#count(record?.status === 'canceled' ? 'canceled' : 'retried', jobError.code);
      if (record?.status !== 'queued') return;
      throw error;
    }
    await jobs.fail(attempt, jobError);
    log.error({ err: error, code: jobError.code }, 'job failed');
    this.#count('failed', jobError.code);
    throw new UnrecoverableError(jobError.message);
  }

  /** The state of the optimizer is of no use once a job has ended. */
  async #clearEnded(attempt: Attempt, log: AttemptDeps['log']): Promise<void> {
    try {
      const record = await this.#deps.jobs.get(attempt);
      if (record?.finished_at) await new Checkpoints(this.#deps.store, attempt).clear();
    } catch (err) {
      log.warn({ err }, 'the checkpoint of an ended job stays in the store');
    }
  }

  /** An engine that does not reach its next step in time is killed; its last stored checkpoint stands. */
  #killWhenIgnored(signal: AbortSignal, engine: Engine): () => void {
    const { ATELIER_CANCEL_GRACE_MS, ATELIER_SHUTDOWN_GRACE_MS } = this.#deps.config;
    let timer: NodeJS.Timeout | undefined;
    const onAbort = (): void => {
      const graceMs = signal.reason === 'give_back' ? ATELIER_SHUTDOWN_GRACE_MS : ATELIER_CANCEL_GRACE_MS;
      timer = setTimeout(() => engine.kill(), graceMs);
    };
    signal.addEventListener('abort', onAbort, { once: true });
    return () => {
      signal.removeEventListener('abort', onAbort);
      clearTimeout(timer);
    };
  }

  #count(outcome: JobOutcome, code = ''): void {
    this.#deps.metrics.jobs.inc({ kind: 'training', outcome, code: code && codeLabel(code) });
  }
}
