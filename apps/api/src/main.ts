import {
  type Config,
  JobQueues,
  JobStore,
  LoraRegistry,
  createLogger,
  createObjectStore,
  createRedis,
  loadCatalog,
  loadConfig,
  onShutdown,
} from '@atelier/shared';
import { type ApiServer, startServer } from './server.ts';
import { type ApiSettings, loadSettings } from './settings.ts';

async function main(config: Config, settings: ApiSettings): Promise<void> {
  const log = createLogger(config, 'api');
  const catalog = await loadCatalog(config, { files: 'unchecked' });
  const redis = createRedis(config, 'api');
  const jobs = new JobStore(redis);
  const queues = new JobQueues(config, redis);
  const store = createObjectStore(config);
  const loras = new LoraRegistry(store, redis, jobs, (problems) =>
    log.warn({ problems }, 'broken LoRA objects'),
  );
  const address = { host: config.ATELIER_HOST, port: config.ATELIER_PORT };
  const server: ApiServer = await startServer(
    { config, settings, log, redis, jobs, queues, store, loras, catalog },
    address,
  );
  log.info({ url: server.url, environment_keys: settings.keys.length }, `listening on ${server.url}`);

  onShutdown({
    log,
    timeoutMs: config.ATELIER_SHUTDOWN_GRACE_MS,
    closers: [
      { name: 'http', close: () => server.close() },
      { name: 'jobs', close: () => jobs.close() },
      { name: 'queues', close: () => queues.close() },
      { name: 'store', close: () => store.close() },
      { name: 'redis', close: () => redis.disconnect() },
    ],
  });
}

try {
  const config = loadConfig();
  await main(config, loadSettings(config.ATELIER_HOST));
} catch (error) {
  // Whoever starts this wants the sentence that says what to change, not where it was thrown.
  console.error(`api: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
}
