import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { JobQueues, JobStore, WorkerRegistration, createWorkerMetrics, serveQueue } from '@atelier/shared';
import type { Catalog, Config, Logger, ObjectStore, WorkerMetrics, createRedis } from '@atelier/shared';
import { EngineHost } from './engine-host.ts';
import type { Engine } from './engine.ts';
import { encodeImage } from './images.ts';
import { GenerationProcessor } from './processor.ts';
import { StyleCache } from './style-cache.ts';

export interface GpuWorkerOptions {
  config: Config;
  /** Made for 'worker'; stays open after the worker was closed. */
  redis: ReturnType<typeof createRedis>;
  store: ObjectStore;
  catalog: Catalog;
  spawnEngine: (onLog: (line: string) => void) => Engine;
  log: Logger;
  metrics?: WorkerMetrics;
}

export interface GpuWorker {
  readonly id: string;
  readonly metrics: WorkerMetrics;
  /** Stops taking jobs; the running one has `graceMs` to end, then it is given back to the queue. */
  close(graceMs: number): Promise<void>;
}

/** How long the endings of a job that was told to stop may take until the worker closes without them. */
const LAST_WRITES_MS = 4_000;
const ENGINE_CLOSE_MS = 1_000;
const REDIS_CLOSE_MS = 1_000;

/**
 * Takes generation jobs, one at a time, until it is closed.
 * @throws FluxError when the default model is to be loaded first and cannot be
 */
export async function startGpuWorker(options: GpuWorkerOptions): Promise<GpuWorker> {
  const { config, redis, store, catalog, spawnEngine, log } = options;
  const metrics = options.metrics ?? createWorkerMetrics();
  const engine = new EngineHost({ config, spawn: spawnEngine, metrics, log });
  if (config.ATELIER_ENGINE_PRELOAD) await engine.ensure(catalog.default);

  // The first picture should not pay for loading the image library.
  await encodeImage({ pixels: new Uint8Array(16 * 16 * 3), width: 16, height: 16 }, 'png');

  const jobs = new JobStore(redis);
  const queues = new JobQueues(config, redis);
  const registration = new WorkerRegistration(redis, {
    kind: 'generation',
    models: [],
    provider: null,
  });
  registration.update(engineInfo(engine));
  const processor = new GenerationProcessor({
    config,
    jobs,
    store,
    catalog,
    engine,
    styles: new StyleCache({
      dir: join(config.ATELIER_CACHE_DIR, 'loras'),
      maxBytes: config.ATELIER_STYLE_CACHE_BYTES,
      store,
      metrics,
    }),
    metrics,
    log,
    workerId: registration.info.id,
    onCurrent: (id) => registration.update({ current_job: id, ...engineInfo(engine) }),
  });
  const closeQueue = serveQueue({
    config,
    redis,
    kind: 'generation',
    jobs,
    queues,
    metrics,
    log,
    names: { worker: 'worker', jobs: 'jobs' },
    process: (job, token) => processor.process(job, token),
    onCancel: (ref) => processor.stop('cancel', ref),
  });
  log.info(
    { worker: registration.info.id, models: catalog.models.map(({ name }) => name) },
    'worker started',
  );

  return {
    id: registration.info.id,
    metrics,
    close: async (graceMs) => {
      const closing = closeQueue();
      const grace = new AbortController();
      await Promise.race([closing, sleep(graceMs, undefined, grace)]);
      processor.stop('give_back');
      await Promise.race([closing, sleep(LAST_WRITES_MS, undefined, grace)]);
      grace.abort();
      jobs.close();
      await engine.close(ENGINE_CLOSE_MS);
      // Both wait for Redis; the heartbeat expires by itself.
      await Promise.race([
        Promise.allSettled([registration.close(), queues.close()]),
        sleep(REDIS_CLOSE_MS, undefined, { ref: false }),
      ]);
    },
  };
}

/** What the list of workers says of an engine. */
function engineInfo({ resident, device }: EngineHost) {
  return {
    models: resident === null ? [] : [resident],
    provider: device?.provider ?? null,
    device: device?.name ?? null,
    device_reason: device?.reason ?? null,
  };
}
