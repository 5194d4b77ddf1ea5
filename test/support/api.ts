import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type Config,
  DEFAULT_TENANT,
  JobQueues,
  JobStore,
  LoraRegistry,
  type ObjectStore,
  Problem,
  createLogger,
  createObjectStore,
  createRedis,
  loadCatalog,
  loadConfig,
} from '@atelier/shared';
import type { z } from 'zod';
import type { ApiDeps } from '../../apps/api/src/deps.ts';
import { startServer } from '../../apps/api/src/server.ts';
import { loadSettings } from '../../apps/api/src/settings.ts';
import { type TestRedis, startTestRedis } from './redis.ts';

const PROJECT = join(import.meta.dirname, '../..');

export interface TestApi {
  readonly url: string;
  readonly deps: Omit<ApiDeps, 'shutdown'>;
  readonly config: Config;
  readonly redis: TestRedis;
  readonly client: ReturnType<typeof createRedis>;
  readonly jobs: JobStore;
  readonly queues: JobQueues;
  readonly store: ObjectStore;
  /** Folder of the object store. */
  readonly storeDir: string;
  /** Ends the HTTP server alone, as a shutdown does. */
  closeServer(): Promise<void>;
  close(): Promise<void>;
}

/** An API on a free port with a Redis and, unless `env` names a bucket, a folder store of its own, for one test file. */
export async function startTestApi(env: Record<string, string> = {}): Promise<TestApi> {
  const redis = await startTestRedis();
  const dataDir = await mkdtemp(join(tmpdir(), 'atelier-api-'));
  const variables = { REDIS_URL: redis.url, ATELIER_DATA_DIR: dataDir, LOG_LEVEL: 'silent', ...env };
  const config = loadConfig(variables, PROJECT);
  const client = createRedis(config, 'api');
  // Until it is connected every command fails, as it should.
  await once(client, 'ready');
  const jobs = new JobStore(client);
  const queues = new JobQueues(config, client);
  const storeDir = join(dataDir, 'store');
  const store = createObjectStore(config);
  const deps = {
    config,
    settings: loadSettings(config.ATELIER_HOST, variables),
    log: createLogger(config, 'api'),
    redis: client,
    jobs,
    queues,
    store,
    loras: new LoraRegistry(store, client, jobs),
    catalog: await loadCatalog(config),
  };
  const server = await startServer(deps, { host: '127.0.0.1', port: 0 });
  let closing: Promise<void> | undefined;
  const closeServer = () => (closing ??= server.close());
  return {
    url: server.url,
    deps,
    config,
    redis,
    client,
    jobs,
    queues,
    store,
    storeDir,
    closeServer,
    close: async () => {
      await closeServer();
      jobs.close();
      await queues.close();
      await store.close();
      client.disconnect();
      await redis.stop();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

/** POST /v1/generations with a JSON body. */
export function submit(api: TestApi, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${api.url}/v1/generations`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
}

/** The body of a response, which must have the status and hold exactly the fields of the schema. */
export async function expectJson<T extends z.ZodType>(
  response: Response,
  status: number,
  schema: T,
): Promise<z.infer<T>> {
  const text = await response.text();
  expect(`${response.status} ${text}`).toMatch(new RegExp(`^${status} `));
  expect(response.headers.get('content-type')).toMatch(/^application\/json/);
  return schema.parse(JSON.parse(text));
}

/** The problem of a response: the status, the content type and the members that each problem has. */
export async function expectProblem(response: Response, status: number, code: string): Promise<Problem> {
  expect(response.headers.get('content-type')).toBe('application/problem+json');
  const problem = Problem.parse(await response.json());
  expect(problem).toMatchObject({ status, code, type: `/problems/${code}` });
  expect(response.status).toBe(status);
  expect(problem.request_id).toBe(response.headers.get('x-request-id'));
  return problem;
}

/** Nothing was recorded, queued or stored. */
export async function expectNothingAccepted(api: TestApi): Promise<void> {
  expect(await api.queues.queueCounts()).toMatchObject({ waiting: 0, active: 0, delayed: 0, failed: 0 });
  expect((await api.jobs.list(DEFAULT_TENANT, 'generation')).records).toEqual([]);
  expect((await api.store.list('')).objects).toEqual([]);
}
