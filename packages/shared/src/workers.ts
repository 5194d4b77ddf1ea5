import { randomUUID } from 'node:crypto';
import { hostname } from 'node:os';
import type { Redis } from 'ioredis';
import type { JobKind } from './contracts/job.ts';
import { KEY_PREFIX } from './jobs/keys.ts';
import { queueCall } from './redis.ts';

/** A worker as `GET /v1/workers` shows it. */
export interface WorkerInfo {
  id: string;
  kind: JobKind;
  /** Models that are loaded. */
  models: string[];
  /** Where the engine computes, such as `cpu`; null until it has loaded a model. */
  provider: string | null;
  /** Name of the device, and why it was chosen; null as long as the provider is. */
  device: string | null;
  device_reason: string | null;
  pid: number;
  host: string;
  started_at: string;
  current_job: string | null;
}

const HEARTBEAT_MS = 3_000;
/** Three heartbeats may be lost before a worker counts as gone. */
const EXPIRY_MS = 10_000;

/** Sorted set: worker ids by the time at which they expire. */
const WORKERS_KEY = `${KEY_PREFIX}:workers`;
const workerKey = (id: string): string => `${KEY_PREFIX}:worker:${id}`;

/** Keeps one worker listed while its process lives. Outages of Redis are ridden out. */
export class WorkerRegistration {
  readonly info: WorkerInfo;
  readonly #redis: Redis;
  readonly #timer: NodeJS.Timeout;
  #closed = false;

  constructor(redis: Redis, worker: Pick<WorkerInfo, 'kind' | 'models' | 'provider'>) {
    this.#redis = redis;
    this.info = {
      id: `${worker.kind === 'training' ? 'trainer' : 'worker'}-${randomUUID().slice(0, 8)}`,
      ...worker,
      device: null,
      device_reason: null,
      pid: process.pid,
      host: hostname(),
      started_at: new Date().toISOString(),
      current_job: null,
    };
    this.#timer = setInterval(() => this.#beat(), HEARTBEAT_MS);
    this.#beat();
  }

  update(
    change: Partial<Pick<WorkerInfo, 'models' | 'provider' | 'device' | 'device_reason' | 'current_job'>>,
  ): void {
    Object.assign(this.info, change);
    this.#beat();
  }

  /** Takes the worker off the list. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await queueCall(() =>
      this.#redis.multi().zrem(WORKERS_KEY, this.info.id).del(workerKey(this.info.id)).exec(),
    );
  }

  #beat(): void {
    // While Redis is away the client queues commands; heartbeats must not pile up there.
    if (this.#closed || this.#redis.status !== 'ready') return;
    const { id } = this.info;
    this.#redis
      .multi()
      .set(workerKey(id), JSON.stringify(this.info), 'PX', EXPIRY_MS)
      .zadd(WORKERS_KEY, Date.now() + EXPIRY_MS, id)
      .zremrangebyscore(WORKERS_KEY, '-inf', Date.now() - EXPIRY_MS)
      .exec()
      .catch(() => {});
  }
}

/** Workers with a fresh heartbeat, in order of their ids. */
export async function listWorkers(redis: Redis): Promise<WorkerInfo[]> {
  const ids = await queueCall(() => redis.zrangebyscore(WORKERS_KEY, Date.now(), '+inf'));
  if (ids.length === 0) return [];
  const texts = await queueCall(() => redis.mget(ids.sort().map(workerKey)));
  return texts.filter((text) => text !== null).map((text) => JSON.parse(text) as WorkerInfo);
}
