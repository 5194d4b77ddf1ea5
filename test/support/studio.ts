import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  DEFAULT_TENANT,
  FolderStore,
  GenerationRequest,
  JobQueues,
  JobStore,
  LoraRegistry,
  createLogger,
  createRedis,
  loadCatalog,
  loadConfig,
  resolveInput,
} from '@atelier/shared';
import type { Catalog, Config, JobRecord, ObjectStore } from '@atelier/shared';
import { pinStyles } from '../../apps/api/src/loras/pin-styles.ts';
import type { Engine } from '../../apps/gpu-worker/src/engine.ts';
import { type GpuWorker, startGpuWorker } from '../../apps/gpu-worker/src/worker.ts';
import { type TestRedis, startTestRedis } from './redis.ts';

/** Everything around a worker but the API: a Redis and a folder of its own, the bundled catalog. */
export interface TestStudio {
  readonly redis: TestRedis;
  readonly env: NodeJS.ProcessEnv;
  readonly config: Config;
  readonly catalog: Catalog;
  readonly jobs: JobStore;
  readonly queues: JobQueues;
  readonly store: ObjectStore;
  readonly loras: LoraRegistry;
  /** Accepts a job like the API does. */
  submit(request?: Partial<GenerationRequest>, imageKey?: string): Promise<JobRecord>;
  /** A worker in this process with the given engines; ends with the studio at the latest. */
  worker(spawnEngine: () => Engine, overrides?: Partial<Config>): Promise<GpuWorker>;
  stop(): Promise<void>;
}

const ROOT = join(import.meta.dirname, '../..');

/** Short times, so that a test of a lost lock or a retry takes no half minute. */
const QUICK = {
  ATELIER_LOCK_MS: '1000',
  ATELIER_JOB_BACKOFF_MS: '20',
  ATELIER_CANCEL_GRACE_MS: '300',
  LOG_LEVEL: process.env['LOG_LEVEL'] ?? 'silent',
};

export async function startTestStudio(): Promise<TestStudio> {
  const redis = await startTestRedis();
  const dir = await mkdtemp(join(tmpdir(), 'atelier-studio-'));
  const env = {
    ...QUICK,
    REDIS_URL: redis.url,
    ATELIER_DATA_DIR: dir,
    ATELIER_CACHE_DIR: join(tmpdir(), 'atelier-test-cache'),
  };
  const config = loadConfig(env, ROOT);
  const catalog = await loadCatalog(config);
  const client = createRedis(config, 'worker');
  const jobs = new JobStore(client);
  const queues = new JobQueues(config, client);
  const store = new FolderStore(join(dir, 'store'));
  const loras = new LoraRegistry(store, client, jobs);
  const ends: (() => Promise<unknown>)[] = [];
  return {
    redis,
    env,
    config,
    catalog,
    jobs,
    queues,
    store,
    loras,
    submit: async (request = {}, imageKey) => {
      const parsed = GenerationRequest.parse({ prompt: 'a red apple', ...request });
      const styles = await pinStyles(loras, DEFAULT_TENANT, parsed.styles);
      const image = imageKey === undefined ? {} : { imageKey };
      const input = resolveInput(parsed, catalog, { styles, ...image });
      const record = await jobs.create({ kind: 'generation', input });
      await queues.enqueueGeneration(record);
      return record;
    },
    worker: async (spawnEngine, overrides = {}) => {
      const workerRedis = createRedis(config, 'worker');
      ends.push(async () => workerRedis.disconnect());
      const worker = await startGpuWorker({
        config: { ...config, ...overrides },
        redis: workerRedis,
        store,
        catalog,
        spawnEngine,
        log: createLogger(config, 'gpu-worker'),
      });
      let closing: Promise<void> | null = null;
      const close = (graceMs: number): Promise<void> => (closing ??= worker.close(graceMs));
      ends.push(() => close(0));
      return { ...worker, close };
    },
    stop: async () => {
      for (const end of ends.toReversed()) await end();
      jobs.close();
      await queues.close();
      client.disconnect();
      await redis.stop();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** Waits for a condition that another process or timer brings about. */
export async function until(condition: () => boolean | Promise<boolean>, ms = 45_000): Promise<void> {
  for (const deadline = Date.now() + ms; !(await condition()); await sleep(10))
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${String(condition)}`);
}
