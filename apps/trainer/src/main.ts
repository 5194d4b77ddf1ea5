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
import { type Trainer, startTrainer } from './trainer.ts';

/** Time to store the checkpoint and to close connections after the engine has stopped. */
const CLOSE_MS = 8_000;

const config = loadConfig();
const log = createLogger(config, 'trainer');
const metrics = createWorkerMetrics();
const redis = createRedis(config, 'worker');
const store = createObjectStore(config);
let trainer: Trainer | null = null;

const health = await startHealthServer({
  host: config.ATELIER_METRICS_HOST,
  port: config.ATELIER_METRICS_PORT,
  registry: metrics.registry,
  checks: { redis: () => pingRedis(redis), store: () => store.ping() },
});
log.info({ port: health.port }, 'health and metrics');

onShutdown({
  log,
  timeoutMs: config.ATELIER_SHUTDOWN_GRACE_MS + CLOSE_MS,
  closers: [
    { name: 'trainer', close: () => trainer?.close(config.ATELIER_SHUTDOWN_GRACE_MS) },
    { name: 'health', close: () => health.close() },
    { name: 'store', close: () => store.close() },
    { name: 'redis', close: () => redis.disconnect() },
  ],
});

try {
  trainer = await startTrainer({
    config,
    redis,
    store,
    catalog: await loadCatalog(config),
    spawnEngine: (onLog) => EngineProcess.spawn({ onLog }),
    log,
    metrics,
  });
} catch (err) {
  log.fatal({ err }, 'the trainer cannot start');
  process.exit(1);
}
