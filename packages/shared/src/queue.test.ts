import type { Worker } from 'bullmq';
import type { Redis } from 'ioredis';
import { startTestRedis } from '../../../test/support/redis.ts';
import type { TestRedis } from '../../../test/support/redis.ts';
import { loadConfig } from './config.ts';
import type { GenerationInput } from './contracts/generation.ts';
import { newAttemptToken } from './ids.ts';
import { JobStore } from './jobs/job-store.ts';
import type { JobRecord } from './jobs/record.ts';
import { JobQueues, createQueueWorker } from './queue.ts';
import type { QueuePayload } from './queue.ts';
import { createRedis, pingRedis } from './redis.ts';

const INPUT = { prompt: '', model: 'mini', steps: 1, count: 1, priority: 'normal' } as GenerationInput;

let server: TestRedis;
let config: ReturnType<typeof loadConfig>;
let redis: Redis;
let workerRedis: Redis;
let store: JobStore;
let queues: JobQueues;
const workers: Worker[] = [];

beforeAll(async () => {
  server = await startTestRedis();
  config = loadConfig({ REDIS_URL: server.url, ATELIER_JOB_ATTEMPTS: '2', ATELIER_JOB_BACKOFF_MS: '10' });
});
afterAll(() => server.stop());
beforeEach(async () => {
  redis = createRedis(config, 'api');
  workerRedis = createRedis(config, 'worker');
  await workerRedis.flushall();
  await until(() => redis.status === 'ready');
  store = new JobStore(redis);
  queues = new JobQueues(config, redis);
});
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.close(true)));
  store.close();
  await queues.close();
  redis.disconnect();
  workerRedis.disconnect();
});

async function until(condition: () => boolean | Promise<boolean>, ms = 10_000): Promise<void> {
  for (const deadline = Date.now() + ms; !(await condition());) {
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${String(condition)}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const create = (priority: GenerationInput['priority'] = 'normal'): Promise<JobRecord> =>
  store.create({ kind: 'generation', input: { ...INPUT, priority } });

async function enqueued(priority?: GenerationInput['priority']): Promise<JobRecord> {
  const record = await create(priority);
  await queues.enqueueGeneration(record);
  return record;
}

function work(processor: (data: QueuePayload, made: number) => Promise<void>): Worker {
  const worker = createQueueWorker(config, workerRedis, 'generation', (job) =>
    processor(job.data, job.attemptsMade),
  );
  worker.on('error', () => {});
  workers.push(worker);
  void worker.run();
  return worker;
}

test('jobs run by priority, then in order of arrival, and their positions say so', async () => {
  const low = await enqueued('low');
  const first = await enqueued();
  const second = await enqueued();
  const high = await enqueued('high');
  const order = [high, first, second, low].map(({ id }) => id);
  expect(await Promise.all(order.map((id) => queues.queuePosition(id)))).toEqual([0, 1, 2, 3]);
  expect(await queues.queueCounts()).toEqual({ waiting: 4, delayed: 0, active: 0, failed: 0, paused: false });

  const seen: string[] = [];
  work(async ({ id }) => void seen.push(id));
  await until(() => seen.length === 4);
  expect(seen).toEqual(order);
  await until(async () => (await queues.queueCounts()).active === 0);
  expect(await queues.queuePosition(high.id)).toBeNull();
  // Finished jobs leave nothing behind in Redis; their records are the store's.
  expect(await workerRedis.keys('{atelier}:generations:gen_*')).toEqual([]);
});

test('enqueueing twice is enqueueing once; a removed job does not run', async () => {
  const record = await enqueued();
  await queues.enqueueGeneration(record);
  expect((await queues.queueCounts()).waiting).toBe(1);
  expect(await queues.remove(record)).toBe(true);
  expect((await queues.queueCounts()).waiting).toBe(0);
});

test('a job that a worker has cannot be removed', async () => {
  const record = await enqueued();
  const { promise: held, resolve: release } = Promise.withResolvers<void>();
  work(() => held);
  await until(async () => (await queues.queueCounts()).active === 1);
  expect(await queues.remove(record)).toBe(false);
  release();
  await until(async () => (await queues.queueCounts()).active === 0);
});

test('a job that fails is tried as often as configured', async () => {
  await enqueued();
  const made: number[] = [];
  work(async (_, attemptsMade) => {
    made.push(attemptsMade);
    throw new Error('on purpose');
  });
  await until(async () => (await queues.queueCounts()).failed === 1);
  expect(made).toEqual([0, 1]);
});

test('a job that takes its worker down every time is given up in the end', async () => {
  const quick = { ...config, ATELIER_LOCK_MS: 100 };
  const { id } = await enqueued();
  let starts = 0;
  const failures: string[] = [];
  // Each worker takes the job and is gone: its lock is not renewed and it never answers.
  const vanishing = async (): Promise<void> => {
    const worker = createQueueWorker(quick, workerRedis, 'generation', () => {
      starts++;
      worker.opts.skipLockRenewal = true;
      void worker.close(true);
      return new Promise<void>(() => {});
    });
    worker.on('error', () => {});
    worker.on('failed', (job, error) =>
      failures.push(`${job?.id} ${error.message} ${Boolean(job?.finishedOn)}`),
    );
    void worker.run();
    const before = starts;
    await until(() => starts > before || failures.length > 0);
    await worker.close(true);
  };
  for (let i = 0; i < 6 && failures.length === 0; i++) await vanishing();
  expect(failures).toEqual([
    expect.stringMatching(new RegExp(`^${id} job stalled more than allowable limit true$`)),
  ]);
  expect(starts).toBe(4);
});

describe('reconcile', () => {
  test('a record whose entry was never written is enqueued, the others are left alone', async () => {
    const lost = await create();
    const there = await enqueued();
    expect(await queues.reconcile(store)).toEqual([lost.id]);
    expect(await queues.queuePosition(there.id)).toBe(0);
    expect(await queues.queuePosition(lost.id)).toBe(1);
    expect(await queues.reconcile(store)).toEqual([]);
  });

  test('a running record whose entry is gone starts again', async () => {
    const record = await create();
    await store.start({ ...record, token: newAttemptToken() }, 'gone');
    expect(await queues.reconcile(store)).toEqual([record.id]);
    expect(await store.get(record)).toMatchObject({ status: 'queued', attempt: null });
    expect(await queues.queuePosition(record.id)).toBe(0);
  });

  test('a job that was to be canceled when its entry was lost ends', async () => {
    const record = await create();
    await store.start({ ...record, token: newAttemptToken() }, 'gone');
    await store.requestCancel(record);
    expect(await queues.reconcile(store)).toEqual([]);
    expect(await store.get(record)).toMatchObject({ status: 'canceled' });
  });

  test('a job that the queue gave up fails in its record', async () => {
    const record = await enqueued();
    work(() => Promise.reject(new Error('worker vanished')));
    await until(async () => (await queues.queueCounts()).failed === 1);
    expect(await queues.reconcile(store)).toEqual([]);
    expect(await store.get(record)).toMatchObject({ status: 'failed', error: { code: 'job_stalled' } });
  });

  test('several at once enqueue each job once, many jobs too', async () => {
    await Promise.all(Array.from({ length: 450 }, () => create()));
    await Promise.all([queues.reconcile(store), queues.reconcile(store)]);
    expect((await queues.queueCounts()).waiting).toBe(450);
  });
});

describe('while Redis is away', () => {
  const unavailable = { code: 'queue_unavailable', cause: expect.anything() };

  test('every call fails within seconds and works again afterwards, without a new client', async () => {
    const record = await enqueued();
    const failsFast = async (call: () => Promise<unknown>): Promise<void> => {
      const began = performance.now();
      await expect(call()).rejects.toMatchObject({ code: 'queue_unavailable' });
      expect(performance.now() - began).toBeLessThan(5_000);
    };
    await server.restart(async () => {
      await until(() => redis.status !== 'ready');
      for (const call of [
        () => store.get(record),
        () => create(),
        () => store.wait(record, 10_000),
        () => queues.enqueueGeneration(record),
        () => queues.queueCounts(),
        () => queues.queuePosition(record.id),
        () => queues.reconcile(store),
        () => pingRedis(redis),
        // Its queue was not made before the outage.
        () => queues.queueCounts('training'),
      ])
        await failsFast(call);
    });
    await until(() => redis.status === 'ready');
    expect(await store.get(record)).toMatchObject({ status: 'queued' });
    expect(await queues.queuePosition(record.id)).toBe(0);
    expect(await queues.queueCounts('training')).toMatchObject({ waiting: 0 });
  });

  test('a server that answers nothing does not hold a call for long', async () => {
    const record = await enqueued();
    server.pause();
    try {
      await expect(store.get(record)).rejects.toMatchObject(unavailable);
      await expect(pingRedis(redis, 100)).rejects.toMatchObject({ code: 'queue_unavailable' });
    } finally {
      server.resume();
    }
    expect(await store.get(record)).toMatchObject({ status: 'queued' });
  });
});
