/**
 * A worker process whose engine is an InstantEngine that takes its time: for tests that freeze or kill a worker.
 * STEP_MS is the time of a step; EXIT_AT_STEP makes it a worker that every job takes down.
 */
import {
  createLogger,
  createObjectStore,
  createRedis,
  loadCatalog,
  loadConfig,
  onShutdown,
} from '@atelier/shared';
import { startGpuWorker } from '../../apps/gpu-worker/src/worker.ts';
import { InstantEngine } from '../support/engines.ts';

class SlowEngine extends InstantEngine {
  protected override async onStep(step: number): Promise<void> {
    if (step === Number(process.env['EXIT_AT_STEP'])) process.kill(process.pid, 'SIGKILL');
  }
}

const config = loadConfig();
const redis = createRedis(config, 'worker');
const log = createLogger(config, 'slow-worker');
const worker = await startGpuWorker({
  config,
  redis,
  store: createObjectStore(config),
  catalog: await loadCatalog(config),
  spawnEngine: () => new SlowEngine({ stepMs: Number(process.env['STEP_MS'] ?? 100) }),
  log,
});
onShutdown({
  log,
  timeoutMs: 5_000,
  closers: [
    { name: 'worker', close: () => worker.close(config.ATELIER_SHUTDOWN_GRACE_MS) },
    { name: 'redis', close: () => redis.disconnect() },
  ],
});
