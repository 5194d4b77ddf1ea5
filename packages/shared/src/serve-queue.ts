import type { Job } from 'bullmq';
import type { Config } from './config.ts';
import type { JobKind } from './contracts/job.ts';
import type { JobStore } from './jobs/job-store.ts';
import type { JobRef } from './jobs/record.ts';
import type { Logger } from './logging.ts';
import type { WorkerMetrics } from './metrics.ts';
import { createQueueWorker, type JobQueues, type QueuePayload, stalledError } from './queue.ts';
import type { createRedis } from './redis.ts';

export interface QueueService {
  config: Config;
  /** Made for 'worker'. */
  redis: ReturnType<typeof createRedis>;
  kind: JobKind;
  jobs: JobStore;
  queues: JobQueues;
  metrics: WorkerMetrics;
  log: Logger;
  /** What this process and its jobs are called in the log. */
  names: { worker: string; jobs: string };
  process: (job: Job<QueuePayload, void>, token?: string) => Promise<void>;
  /** A running job was asked to stop, on whichever worker it runs. */
  onCancel: (ref: JobRef) => void;
}

/**
 * Takes the jobs of a queue, one at a time, until the returned function is called; that one resolves when the running
 * job is settled, which the caller bounds. Jobs that the queue has lost are enqueued again whenever Redis comes back.
 */
export function serveQueue(service: QueueService): () => Promise<void> {
  const { config, redis, kind, jobs, queues, metrics, log, names } = service;
  const worker = createQueueWorker(config, redis, kind, (job, token) => service.process(job, token));
  worker.on('error', (err) => log.warn({ err }, 'queue'));
  worker.on('stalled', (job_id) => {
    metrics.stalled.inc();
    log.warn({ job_id }, `a ${names.worker} stopped renewing its lock; the job is tried again`);
  });
  worker.on('failed', (job, error) => {
    // Most have ended in their record already, and this is refused; those that stalled too often have not.
    if (job?.finishedOn)
      jobs
        .abandon(job.data, stalledError(error.message))
        .catch((err: unknown) => log.error({ err }, 'queue'));
  });
  // Not awaited: while Redis is away they wait, and the process has to be able to shut down.
  const reconcile = (): void => {
    queues.reconcile(jobs, kind).then(
      (ids) =>
        ids.length > 0 &&
        log.warn({ job_ids: ids }, `${names.jobs} that the queue had lost were enqueued again`),
      (err: unknown) => log.error({ err }, 'reconcile'),
    );
  };
  if (redis.status === 'ready') reconcile();
  redis.on('ready', reconcile);
  jobs.onCancelRequest(service.onCancel).catch((err: unknown) => log.error({ err }, 'cancel'));
  worker.run().catch((err: unknown) => log.error({ err }, 'the queue worker ended'));
  return () => {
    redis.off('ready', reconcile);
    return worker.close();
  };
}
