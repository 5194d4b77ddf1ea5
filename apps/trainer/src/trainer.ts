import { setTimeout as sleep } from 'node:timers/promises';
import {
  JobQueues,
  JobStore,
  LoraRegistry,
  WorkerRegistration,
  createWorkerMetrics,
  serveQueue,
} from '@atelier/shared';
import type { Catalog, Config, Logger, ObjectStore, WorkerMetrics, createRedis } from '@atelier/shared';
import type { Engine } from './engine.ts';
import { TrainingProcessor } from './processor.ts';

export interface TrainerOptions {
  config: Config;
  /** Made for 'worker'; stays open after the trainer was closed. */
  redis: ReturnType<typeof createRedis>;
  store: ObjectStore;
  catalog: Catalog;
  spawnEngine: (onLog: (line: string) => void) => Engine;
  log: Logger;
  metrics?: WorkerMetrics;
}

export interface Trainer {
  readonly id: string;
  /** Stops taking jobs; the running one writes a checkpoint and is given back to the queue within `graceMs`. */
  close(graceMs: number): Promise<void>;
}

/** How long the endings of a job that was told to stop may take until the trainer closes without them. */
const LAST_WRITES_MS = 4_000;
const REDIS_CLOSE_MS = 1_000;

/** Takes training jobs, one at a time, until it is closed. */
export async function startTrainer(options: TrainerOptions): Promise<Trainer> {
  const { config, redis, store, catalog, spawnEngine, log } = options;
  const metrics = options.metrics ?? createWorkerMetrics();
  const jobs = new JobStore(redis);
  const queues = new JobQueues(config, redis);
  const registration = new WorkerRegistration(redis, { kind: 'training', models: [], provider: 'cpu' });
  const processor = new TrainingProcessor({
    config,
    jobs,
    store,
    loras: new LoraRegistry(store, redis, jobs, (problems) => log.warn({ problems }, 'LoRAs')),
    catalog,
    spawnEngine,
    metrics,
    log,
    workerId: registration.info.id,
    onCurrent: (id) => registration.update({ current_job: id }),
  });
  const closeQueue = serveQueue({
    config,
    redis,
    kind: 'training',
    jobs,
    queues,
    metrics,
    log,
    names: { worker: 'trainer', jobs: 'trainings' },
    process: (job, token) => processor.process(job, token),
    onCancel: (ref) => processor.stop('cancel', ref),
  });
  log.info({ worker: registration.info.id }, 'trainer started');

  return {
    id: registration.info.id,
    close: async (graceMs) => {
      const closing = closeQueue();
      // A training does not end in the time that a shutdown has: it goes on elsewhere from this very step.
      processor.stop('give_back');
      const grace = new AbortController();
      await Promise.race([closing, sleep(graceMs + LAST_WRITES_MS, undefined, grace)]);
      grace.abort();
      jobs.close();
      // Both wait for Redis; the heartbeat expires by itself.
      await Promise.race([
        Promise.allSettled([registration.close(), queues.close()]),
        sleep(REDIS_CLOSE_MS, undefined, { ref: false }),
      ]);
    },
  };
}
