import { EngineProcess } from '@atelier/flux';
import {
  createLogger,
  createObjectStore,
  createRedis,
  createWorkerMetrics,
  loadCatalog,
  loadConfig,
  onShutdown,
  pingRedis,
  startHealthServer,
} from '@atelier/shared';
import { type GpuWorker, startGpuWorker } from './worker.ts';

/** Time to close connections after a job was given back. */
const CLOSE_MS = 8_000;

const config = loadConfig();
const log = createLogger(config, 'gpu-worker');
const metrics = createWorkerMetrics();
const redis = createRedis(config, 'worker');
const store = createObjectStore(config);
let worker: GpuWorker | null = null;

const health = await startHealthServer({
  host: config.ATELIER_METRICS_HOST,
  port: config.ATELIER_METRICS_PORT,
  registry: metrics.registry,
  checks: {
    redis: () => pingRedis(redis),
    store: () => store.ping(),
    worker: () => (worker ? Promise.resolve() : Promise.reject(new Error('the model is being loaded'))),
  },
});
log.info({ port: health.port }, 'health and metrics');

onShutdown({
  log,
  timeoutMs: config.ATELIER_SHUTDOWN_GRACE_MS + CLOSE_MS,
  closers: [
    { name: 'worker', close: () => worker?.close(config.ATELIER_SHUTDOWN_GRACE_MS) },
    { name: 'health', close: () => health.close() },
    { name: 'store', close: () => store.close() },
    { name: 'redis', close: () => redis.disconnect() },
  ],
});

try {
  worker = await startGpuWorker({
    config,
    redis,
    store,
    catalog: await loadCatalog(config),
    spawnEngine: (onLog) => EngineProcess.spawn({ onLog }),
    log,
    metrics,
  });
} catch (err) {
  log.fatal({ err }, 'the worker cannot start');
  process.exit(1);
}
