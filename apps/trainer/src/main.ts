import {
  createLogger,
  createRedis,
  createWorkerMetrics,
  loadConfig,
  onShutdown,
  pingRedis,
  startHealthServer,
} from '@atelier/shared';
import { startTrainer } from './trainer.ts';

const SHUTDOWN_MS = 8_000;

const config = loadConfig();
const log = createLogger(config, 'trainer');
const metrics = createWorkerMetrics();
const redis = createRedis(config, 'worker');
const health = await startHealthServer({
  host: config.ATELIER_METRICS_HOST,
  port: config.ATELIER_METRICS_PORT,
  registry: metrics.registry,
  checks: { redis: () => pingRedis(redis) },
});
log.info({ port: health.port }, 'health and metrics');
const trainer = await startTrainer({ config, redis, log, metrics });

onShutdown({
  log,
  timeoutMs: SHUTDOWN_MS,
  closers: [
    { name: 'trainer', close: () => trainer.close() },
    { name: 'health', close: () => health.close() },
    { name: 'redis', close: () => redis.disconnect() },
  ],
});
