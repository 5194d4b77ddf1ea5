import { Queue, Worker } from 'bullmq';
import type { Processor } from 'bullmq';
import type { Redis } from 'ioredis';
import type { Config } from './config.ts';
import type { GenerationInput } from './contracts/generation.ts';
import type { JobKind } from './contracts/job.ts';
import { AtelierError } from './errors.ts';
import type { JobStore } from './jobs/job-store.ts';
import { KEY_PREFIX } from './jobs/keys.ts';
import type { JobRecord, JobRef } from './jobs/record.ts';
import { pingRedis, queueCall } from './redis.ts';

export const QUEUE_NAMES = Object.freeze({ generation: 'generations', training: 'trainings' } as const);

/** BullMQ runs lower numbers first, and jobs without a priority before all others: so every job has one. */
const PRIORITIES: Record<GenerationInput['priority'], number> = { high: 1, normal: 10, low: 100 };

/** What the queue carries: the record has the rest. */
export type QueuePayload = JobRef;

/** Numbers that the API shows and an autoscaler reads; `waiting` is every job that could start now. */
export interface QueueCounts {
  waiting: number;
  /** Waiting for the next attempt. */
  delayed: number;
  active: number;
  failed: number;
  paused: boolean;
}

/** Stalls of one job that are forgiven; a job that takes its worker down is not tried for ever. */
const MAX_STALLED_COUNT = 3;
/** Starts beyond the attempts: those that stalled or were given back. */
const SPARE_STARTS = 10;
/** Jobs that failed in the queue are kept for a person to look at; the record stays in any case. */
const KEEP_FAILED = { age: 7 * 24 * 3600, count: 1000 };
const RECONCILE_BATCH = 100;

type Settings = Pick<Config, 'ATELIER_JOB_ATTEMPTS' | 'ATELIER_JOB_BACKOFF_MS' | 'ATELIER_LOCK_MS'>;

/** The producer's side of both queues. Rejects with `queue_unavailable` while Redis is away. */
export class JobQueues {
  readonly #config: Settings;
  readonly #redis: Redis;
  readonly #queues = new Map<JobKind, Promise<Queue<QueuePayload>>>();

  constructor(config: Settings, redis: Redis) {
    this.#config = config;
    this.#redis = redis;
  }

  /**
   * Puts a job in the queue under the id of its record; without effect when it is there. Create the record first:
   * a record without a queue entry is repaired by {@link reconcile}, an entry without a record is lost work.
   */
  enqueueGeneration(record: JobRecord): Promise<void> {
    return this.#enqueue('generation', record);
  }

  enqueueTraining(record: JobRecord): Promise<void> {
    return this.#enqueue('training', record);
  }

  /** Jobs that start before this one; null when it is not waiting. */
  async queuePosition(id: string, kind: JobKind = 'generation'): Promise<number | null> {
    const wait = `${KEY_PREFIX}:${QUEUE_NAMES[kind]}:wait`;
    const prioritized = `${KEY_PREFIX}:${QUEUE_NAMES[kind]}:prioritized`;
    const [stalled, fromEnd, rank] = await queueCall(() =>
      Promise.all([this.#redis.llen(wait), this.#redis.lpos(wait, id), this.#redis.zrank(prioritized, id)]),
    );
    // Jobs that stalled are in a list before all prioritised ones, taken from its right end.
    if (fromEnd !== null) return stalled - 1 - fromEnd;
    return rank === null ? null : stalled + rank;
  }

  async queueCounts(kind: JobKind = 'generation'): Promise<QueueCounts> {
    const queue = await this.#queue(kind);
    const [counts, paused] = await queueCall(() =>
      Promise.all([
        queue.getJobCounts('wait', 'prioritized', 'delayed', 'active', 'failed'),
        queue.isPaused(),
      ]),
    );
    const { wait = 0, prioritized = 0, delayed = 0, active = 0, failed = 0 } = counts;
    return { waiting: wait + prioritized, delayed, active, failed, paused };
  }

  /** Takes a job out of the queue after it was canceled; false when a worker has it, who will see the record. */
  async remove({ id }: JobRef, kind: JobKind = 'generation'): Promise<boolean> {
    const queue = await this.#queue(kind);
    return (await queueCall(() => queue.remove(id))) === 1;
  }

  /**
   * Makes queue and records agree after a crash between two writes or a loss of the queue's last second:
   * an open record that the queue does not know is enqueued again, one that the queue gave up is failed.
   * Safe at any time and from several processes at once.
   * @returns ids of the jobs that were enqueued
   */
  async reconcile(store: JobStore, kind: JobKind = 'generation'): Promise<string[]> {
    const queue = await this.#queue(kind);
    const enqueued: string[] = [];
    let batch: Promise<void>[] = [];
    for await (const record of store.open(kind)) {
      batch.push(this.#reconcileOne(queue, store, record, enqueued));
      if (batch.length === RECONCILE_BATCH) await Promise.all(batch.splice(0));
    }
    await Promise.all(batch);
    return enqueued;
  }

  async close(): Promise<void> {
    await Promise.allSettled([...this.#queues.values()].map(async (queue) => (await queue).close()));
  }

  async #reconcileOne(queue: Queue, store: JobStore, record: JobRecord, enqueued: string[]): Promise<void> {
    const state = await queueCall(() => queue.getJobState(record.id));
    if (state === 'failed') {
      const reason = (await queueCall(() => queue.getJob(record.id)))?.failedReason ?? 'unknown reason';
      await store.abandon(record, stalledError(reason));
      return;
    }
    if (state !== 'unknown' && state !== 'completed') return;
    if (record.status === 'running') {
      // Refused when the attempt ended between the two reads, which is the usual reason for a missing entry.
      const outcome = await store.requeue({ ...record, token: record.attempt ?? '' });
      if (outcome.result !== 'done' || outcome.record.status !== 'queued') return;
    }
    if (state === 'completed') await queueCall(() => queue.remove(record.id));
    await this.#enqueue(record.kind, record);
    enqueued.push(record.id);
  }

  async #enqueue(kind: JobKind, record: JobRecord): Promise<void> {
    const queue = await this.#queue(kind);
    await queueCall(() =>
      queue.add(
        kind,
        { tenant: record.tenant, id: record.id },
        {
          jobId: record.id,
          priority: PRIORITIES[record.input.priority ?? 'normal'],
          attempts: this.#config.ATELIER_JOB_ATTEMPTS,
          backoff: { type: 'exponential', delay: this.#config.ATELIER_JOB_BACKOFF_MS },
          removeOnComplete: true,
          removeOnFail: KEEP_FAILED,
        },
      ),
    );
  }

  /**
   * BullMQ reads the server's version when a queue is made, waits for ever for a server that is away and never
   * recovers when that read fails: so a queue is made only while Redis answers, and again if making it failed.
   */
  #queue(kind: JobKind): Promise<Queue<QueuePayload>> {
    const made = this.#queues.get(kind);
    if (made) return made;
    const making = (async () => {
      if (this.#redis.options.enableOfflineQueue === false) await pingRedis(this.#redis);
      const queue = new Queue<QueuePayload>(QUEUE_NAMES[kind], {
        connection: this.#redis,
        prefix: KEY_PREFIX,
      });
      // Outages reject the call that meets them; without a listener BullMQ writes them to the console.
      queue.on('error', () => {});
      try {
        await queueCall(() => queue.waitUntilReady());
        return queue;
      } catch (error) {
        await queue.close().catch(() => {});
        throw error;
      }
    })();
    this.#queues.set(kind, making);
    making.catch(() => this.#queues.delete(kind));
    return making;
  }
}

/** What a record says whose job the queue gave up: its workers vanished too often. */
export function stalledError(reason: string): { code: 'job_stalled'; message: string; retryable: false } {
  return {
    code: 'job_stalled',
    message: `The queue gave the job up after its workers vanished: ${reason}`,
    retryable: false,
  };
}

/** The consumer's side: one job at a time, started by the caller with `run()`. `redis` must be made for `worker`. */
export function createQueueWorker(
  config: Settings,
  redis: Redis,
  kind: JobKind,
  processor: Processor<QueuePayload, void>,
): Worker<QueuePayload, void> {
  if (redis.options.maxRetriesPerRequest !== null)
    throw new AtelierError('internal_error', "A queue worker needs a Redis client made for 'worker'");
  return new Worker<QueuePayload, void>(QUEUE_NAMES[kind], processor, {
    connection: redis,
    prefix: KEY_PREFIX,
    autorun: false,
    concurrency: 1,
    lockDuration: config.ATELIER_LOCK_MS,
    stalledInterval: config.ATELIER_LOCK_MS,
    maxStalledCount: MAX_STALLED_COUNT,
    maxStartedAttempts: config.ATELIER_JOB_ATTEMPTS + SPARE_STARTS,
    // Pause before a fetch or a final write is tried again while Redis is away.
    runRetryDelay: 1_000,
  });
}
