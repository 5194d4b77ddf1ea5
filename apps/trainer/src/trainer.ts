import {
  ERRORS,
  JobStore,
  WorkerRegistration,
  codeLabel,
  createQueueWorker,
  createWorkerMetrics,
  newAttemptToken,
} from '@atelier/shared';
import type { Config, JobError, Logger, QueuePayload, WorkerMetrics, createRedis } from '@atelier/shared';
import { UnrecoverableError } from 'bullmq';
import { setTimeout as sleep } from 'node:timers/promises';

export interface TrainerOptions {
  config: Config;
  /** Made for 'worker'; stays open after the trainer was closed. */
  redis: ReturnType<typeof createRedis>;
  log: Logger;
  metrics?: WorkerMetrics;
}

export interface Trainer {
  readonly id: string;
  close(): Promise<void>;
}

/** What every training ends with: this version trains nothing. */
const UNAVAILABLE: JobError = Object.freeze({
  code: 'training_unavailable',
  message: 'This version cannot train a LoRA yet; the job was not started',
  retryable: ERRORS.training_unavailable.retryable,
});

const CLOSE_MS = 3_000;

/** Takes training jobs and ends each with a clear error, so that none waits for ever. */
export async function startTrainer(options: TrainerOptions): Promise<Trainer> {
  const { config, redis, log } = options;
  const metrics = options.metrics ?? createWorkerMetrics();
  const jobs = new JobStore(redis);
  const registration = new WorkerRegistration(redis, { kind: 'training', models: [], provider: null });
  const worker = createQueueWorker(config, redis, 'training', async ({ data }: { data: QueuePayload }) => {
    const attempt = { ...data, token: newAttemptToken() };
    const { result, record } = await jobs.start(attempt, registration.info.id);
    if (result !== 'done' || record.status !== 'running') return;
    await jobs.fail(attempt, UNAVAILABLE);
    metrics.jobs.inc({ kind: 'training', outcome: 'failed', code: codeLabel(UNAVAILABLE.code) });
    log.warn({ job_id: data.id, code: UNAVAILABLE.code }, UNAVAILABLE.message);
    throw new UnrecoverableError(UNAVAILABLE.message);
  });
  worker.on('error', (err) => log.warn({ err }, 'queue'));
  worker.run().catch((err: unknown) => log.error({ err }, 'the queue worker ended'));
  log.info({ worker: registration.info.id }, 'trainer started');
  return {
    id: registration.info.id,
    close: async () => {
      const closing = Promise.allSettled([worker.close(), registration.close()]);
      await Promise.race([closing, sleep(CLOSE_MS, undefined, { ref: false })]);
      jobs.close();
    },
  };
}
