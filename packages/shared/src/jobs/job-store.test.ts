import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { startTestRedis } from '../../../../test/support/redis.ts';
import type { TestRedis } from '../../../../test/support/redis.ts';
import type { GenerationInput } from '../contracts/generation.ts';
import { TrainingInput } from '../contracts/training.ts';
import { newAttemptToken, newJobId } from '../ids.ts';
import { createRedis } from '../redis.ts';
import { JobStore } from './job-store.ts';
import type { Attempt, JobEvent, JobRecord, Outcome } from './record.ts';

const INPUT: GenerationInput = {
  prompt: 'a cat',
  model: 'mini',
  styles: [],
  width: 64,
  height: 64,
  steps: 4,
  guidance: 1,
  seed: 1,
  count: 2,
  format: 'png',
  priority: 'normal',
};
const IMAGE = { key: 'k', width: 64, height: 64, seed: 1, sha256: 'ab', content_type: 'image/png' };
const ERROR = { code: 'engine_failed', message: 'no', retryable: true };

let server: TestRedis;
let redis: Redis;
let store: JobStore;
beforeAll(async () => {
  server = await startTestRedis();
  redis = createRedis({ REDIS_URL: server.url }, 'worker');
});
afterAll(async () => {
  redis.disconnect();
  await server.stop();
});
beforeEach(async () => {
  await redis.flushall();
  store = new JobStore(redis);
});
afterEach(() => store.close());

const create = (): Promise<JobRecord> => store.create({ kind: 'generation', input: INPUT });
const attemptOf = ({ tenant, id }: JobRecord): Attempt => ({ tenant, id, token: newAttemptToken() });
const statusOf = (outcome: Outcome): string => `${outcome.result} ${outcome.record?.status ?? ''}`.trim();
const openIds = async (): Promise<string[]> => {
  const ids: string[] = [];
  for await (const { id } of store.open('generation')) ids.push(id);
  return ids;
};

async function started(): Promise<Attempt> {
  const attempt = attemptOf(await create());
  await store.start(attempt, 'worker-1');
  return attempt;
}

describe('the life of a job', () => {
  test('from queued to succeeded', async () => {
    const record = await create();
    expect(record).toMatchObject({
      kind: 'generation',
      tenant: 'default',
      status: 'queued',
      progress: { step: 0, steps: 8, fraction: 0, eta_s: null },
      attempts: 0,
    });
    expect(await store.get(record)).toEqual(record);

    const attempt = attemptOf(record);
    expect((await store.start(attempt, 'worker-1')).record).toMatchObject({
      status: 'running',
      attempts: 1,
      worker: 'worker-1',
      started_at: expect.stringMatching(/Z$/),
    });
    const half = { step: 4, steps: 8, fraction: 0.5, eta_s: 1.5 };
    expect((await store.progress(attempt, half)).record!.progress).toEqual(half);
    const { record: ended } = await store.publish(attempt, [IMAGE], { total_ms: 12.5 });
    expect(ended).toMatchObject({
      status: 'succeeded',
      progress: { step: 8, steps: 8, fraction: 1, eta_s: 0 },
      output: { images: [IMAGE] },
      timings: { total_ms: 12.5 },
      error: null,
      attempt: null,
      finished_at: expect.stringMatching(/Z$/),
    });
    expect(await store.get(record)).toEqual(ended);
    expect(await openIds()).toEqual([]);
  });

  test('an attempt that failed goes back to the queue and keeps its count; one given back does not', async () => {
    const attempt = await started();
    expect((await store.retry(attempt)).record).toMatchObject({
      status: 'queued',
      attempts: 1,
      attempt: null,
    });
    const second = { ...attempt, token: newAttemptToken() };
    await store.start(second, 'worker-2');
    expect((await store.giveBack(second)).record).toMatchObject({
      status: 'queued',
      attempts: 1,
      worker: null,
    });
    expect(await openIds()).toEqual([attempt.id]);
    const third = { ...attempt, token: newAttemptToken() };
    expect((await store.start(third, 'worker-2')).record).toMatchObject({ attempts: 2 });
    expect((await store.fail(third, ERROR)).record).toMatchObject({ status: 'failed', error: ERROR });
  });

  test('nothing leaves an end', async () => {
    const ends: ((attempt: Attempt) => Promise<Outcome>)[] = [
      (a) => store.publish(a, [IMAGE], {}),
      (a) => store.fail(a, ERROR),
      (a) => store.cancel(a),
      (a) => store.abandon(a, ERROR),
    ];
    for (const end of ends) {
      const attempt = await started();
      const { record } = await end(attempt);
      const later = [
        store.start({ ...attempt, token: newAttemptToken() }, 'w'),
        store.progress(attempt, record!.progress),
        store.publish(attempt, [IMAGE], {}),
        store.fail(attempt, ERROR),
        store.retry(attempt),
        store.giveBack(attempt),
        store.cancel(attempt),
        store.abandon(attempt, ERROR),
        store.requestCancel(attempt),
      ];
      for (const outcome of await Promise.all(later)) expect(outcome.result).toBe('refused');
      expect(await store.get(attempt)).toEqual(record);
    }
  });

  test('a job that is not there is missing, and an id is taken once', async () => {
    const nobody = { tenant: 'default', id: newJobId('generation'), token: 't' };
    expect(await store.get(nobody)).toBeNull();
    expect(await store.start(nobody, 'w')).toEqual({ result: 'missing', record: null });
    expect(await store.requestCancel(nobody)).toEqual({ result: 'missing', record: null });
    const record = await create();
    const again = store.create({ kind: 'generation', id: record.id, input: INPUT });
    await expect(again).rejects.toMatchObject({ code: 'conflict' });
    expect(await store.get({ ...record, tenant: 'other' })).toBeNull();
    await expect(store.get({ ...record, tenant: 'a:b' })).rejects.toThrow(RangeError);
  });
});

describe('races', () => {
  test('of 20 publishes at once one wins', async () => {
    const attempt = await started();
    const outcomes = await Promise.all(
      Array.from({ length: 20 }, (_, i) => store.publish(attempt, [{ ...IMAGE, seed: i }], {})),
    );
    expect(outcomes.filter(({ result }) => result === 'done')).toHaveLength(1);
    const winner = outcomes.findIndex(({ result }) => result === 'done');
    expect((await store.get(attempt))!.output!.images[0]!.seed).toBe(winner);
  });

  test('of publish, fail, cancel and retry at once one wins', async () => {
    for (let round = 0; round < 20; round++) {
      const attempt = await started();
      const outcomes = await Promise.all([
        store.publish(attempt, [IMAGE], {}),
        store.fail(attempt, ERROR),
        store.cancel(attempt),
        store.retry(attempt),
      ]);
      expect(outcomes.filter(({ result }) => result === 'done')).toHaveLength(1);
    }
  });

  test('a frozen attempt that wakes up after another took over changes nothing', async () => {
    const stale = await started();
    const fresh = { ...stale, token: newAttemptToken() };
    expect(statusOf(await store.start(fresh, 'worker-2'))).toBe('done running');
    const before = await store.get(stale);
    for (const write of [
      store.progress(stale, { step: 1, steps: 8, fraction: 0.1, eta_s: null }),
      store.publish(stale, [IMAGE], {}),
      store.fail(stale, ERROR),
      store.retry(stale),
      store.giveBack(stale),
      store.cancel(stale),
    ])
      expect(statusOf(await write)).toBe('refused running');
    expect(await store.get(stale)).toEqual(before);
    expect(statusOf(await store.publish(fresh, [IMAGE], {}))).toBe('done succeeded');
  });
});

describe('cancel', () => {
  test('a queued job ends at once', async () => {
    const record = await create();
    expect(statusOf(await store.requestCancel(record))).toBe('done canceled');
    expect(statusOf(await store.start(attemptOf(record), 'w'))).toBe('refused canceled');
    expect(await openIds()).toEqual([]);
  });

  test('a running job is marked and its worker told; a result published first stands', async () => {
    const told: string[] = [];
    await store.onCancelRequest(({ id }) => told.push(id));
    const attempt = await started();
    const { record } = await store.requestCancel(attempt);
    expect(record).toMatchObject({ status: 'running', cancel_requested_at: expect.any(String) });
    await redis.ping();
    await sleep(50);
    expect(told).toEqual([attempt.id]);
    expect(statusOf(await store.publish(attempt, [IMAGE], {}))).toBe('done succeeded');
  });

  test.each(['retry', 'giveBack', 'requeue'] as const)('%s after a request ends the job', async (how) => {
    const attempt = await started();
    await store.requestCancel(attempt);
    expect(statusOf(await store[how](attempt))).toBe('done canceled');
    expect(await openIds()).toEqual([]);
  });

  test('an attempt that takes over after a request ends the job', async () => {
    const attempt = await started();
    await store.requestCancel(attempt);
    const next = await store.start({ ...attempt, token: newAttemptToken() }, 'worker-2');
    expect(next.record).toMatchObject({ status: 'canceled', attempts: 1 });
  });
});

describe('lists', () => {
  test('newest first, page by page, of one tenant and one kind', async () => {
    const ids: string[] = [];
    for (let i = 0; i < 7; i++) {
      ids.unshift((await create()).id);
      await sleep(2);
    }
    await store.create({ kind: 'generation', tenant: 'other', input: INPUT });
    const training = { name: 'ink', dataset: 'dst_1', model: 'mini', resolution: 128 };
    await store.create({ kind: 'training', input: TrainingInput.parse(training) });
    const first = await store.list('default', 'generation', { limit: 3 });
    expect(first.records.map(({ id }) => id)).toEqual(ids.slice(0, 3));
    // A job that arrives between two pages moves nothing.
    await create();
    const second = await store.list('default', 'generation', { limit: 3, cursor: first.cursor! });
    const third = await store.list('default', 'generation', { limit: 3, cursor: second.cursor! });
    expect([...second.records, ...third.records].map(({ id }) => id)).toEqual(ids.slice(3));
    expect(third.cursor).toBeNull();
  });
});

describe('wait', () => {
  test('answers as soon as the job ends', async () => {
    const attempt = await started();
    const waiting = store.wait(attempt, 30_000);
    await sleep(100);
    const published = performance.now();
    await store.publish(attempt, [IMAGE], {});
    expect(await waiting).toMatchObject({ status: 'succeeded' });
    expect(performance.now() - published).toBeLessThan(1_000);
  });

  test('does not miss an end between its first read and its subscription', async () => {
    for (let round = 0; round < 30; round++) {
      const attempt = await started();
      const began = performance.now();
      const [record] = await Promise.all([store.wait(attempt, 5_000), store.publish(attempt, [IMAGE], {})]);
      expect(record).toMatchObject({ status: 'succeeded' });
      expect(performance.now() - began).toBeLessThan(2_000);
    }
  });

  test('gives the record as it is when the time is over or the client left, and leaves no subscription', async () => {
    const attempt = await started();
    expect(await store.wait(attempt, 50)).toMatchObject({ status: 'running' });
    const left = new AbortController();
    const waiting = store.wait(attempt, 30_000, left.signal);
    left.abort();
    expect(await waiting).toMatchObject({ status: 'running' });
    expect(await store.wait({ ...attempt, id: newJobId('generation') }, 1_000)).toBeNull();
    expect(await store.wait(attempt, 0)).toMatchObject({ status: 'running' });
    await sleep(50);
    expect(await redis.pubsub('CHANNELS')).toEqual([]);
  });

  test('survives a restart of Redis', async () => {
    const attempt = await started();
    const waiting = store.wait(attempt, 30_000);
    await sleep(100);
    await server.restart();
    await store.publish(attempt, [IMAGE], {});
    expect(await waiting).toMatchObject({ status: 'succeeded' });
  });
});

test('watchers see each change, in order, after it was written', async () => {
  const record = await create();
  const events: string[] = [];
  const both: JobEvent[] = [];
  const unwatch = await store.subscribe(record, (e) =>
    events.push(`${e.type} ${e.status} ${e.progress.step}`),
  );
  await store.subscribe(record, (event) => both.push(event));
  const attempt = attemptOf(record);
  await store.start(attempt, 'w');
  await store.progress(attempt, { step: 3, steps: 8, fraction: 0.375, eta_s: 2 });
  await store.publish(attempt, [IMAGE], {});
  await sleep(50);
  expect(events).toEqual(['status running 0', 'progress running 3', 'status succeeded 8']);
  expect(both).toHaveLength(3);
  await unwatch();
  await unwatch();
});
