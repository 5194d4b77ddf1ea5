import { rename, rm, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { GenerationJob, GenerationList, ReadinessView } from '@atelier/shared';
import { type TestApi, expectJson, expectProblem, startTestApi, submit } from '../support/api.ts';
import { INSTANT_PNG, type InstantWorker, startInstantWorker } from '../support/instant-worker.ts';

/** Far below what a hanging connection takes; in practice a refusal takes 1.5 s at most, on an idle machine. */
const QUICK_MS = 10_000;

let api: TestApi;
let worker: InstantWorker | null = null;
beforeEach(async () => {
  api = await startTestApi();
});
afterEach(async () => {
  await worker?.close();
  worker = null;
  await api.close();
});

const get = (path: string) => fetch(api.url + path);
const prompt = { prompt: 'a red apple' };
const withImage = { ...prompt, image: { file: `data:image/png;base64,${INSTANT_PNG.toString('base64')}` } };

async function quickly<T>(action: () => Promise<T>): Promise<T> {
  const started = Date.now();
  const result = await action();
  expect(Date.now() - started).toBeLessThan(QUICK_MS);
  return result;
}

/** Every route that needs Redis says so quickly; those that do not go on. */
async function expectRedisMissed(jobId: string): Promise<void> {
  const requests = [
    () => submit(api, prompt),
    () => submit(api, prompt, { Prefer: 'wait=30' }),
    () => get('/v1/generations'),
    () => get(`/v1/generations/${jobId}`),
    () => get(`/v1/generations/${jobId}/events`),
    () => get(`/v1/generations/${jobId}/images/0`),
    () => fetch(`${api.url}/v1/generations/${jobId}/cancel`, { method: 'POST' }),
    () => get('/v1/queue'),
    () => get('/v1/workers'),
  ];
  await Promise.all(
    requests.map(async (request) => {
      const response = await quickly(request);
      expect(response.headers.get('retry-after')).toBe('5');
      const problem = await expectProblem(response, 503, 'queue_unavailable');
      expect(problem.detail).toBe('Redis does not answer; nothing was queued or changed. Try again in 5 s.');
    }),
  );
  const { ready, checks } = await expectJson(await quickly(() => get('/readyz')), 503, ReadinessView);
  expect({ ready, redis: checks['redis']?.ok, store: checks['store']?.ok }).toEqual({
    ready: false,
    redis: false,
    store: true,
  });
  for (const path of ['/healthz', '/metrics', '/', '/v1/models', '/openapi.json']) {
    expect((await quickly(() => get(path))).status).toBe(200);
  }
}

async function untilReady(): Promise<void> {
  while (!(await get('/readyz')).ok) await sleep(20);
}

test('Redis stopped: quick refusals, jobs kept, recovery without a restart', async () => {
  const job = await expectJson(await submit(api, prompt), 202, GenerationJob);
  await api.redis.restart(() => expectRedisMissed(job.id));
  await untilReady();
  expect(await expectJson(await get(`/v1/generations/${job.id}`), 200, GenerationJob)).toEqual(job);
  worker = startInstantWorker(api);
  await expectJson(await submit(api, prompt, { Prefer: 'wait=30' }), 200, GenerationJob);
  const all = await expectJson(await get('/v1/generations'), 200, GenerationList);
  // The two that were refused left nothing behind.
  expect(all.data.map(({ status }) => status)).toEqual(['succeeded', 'succeeded']);
});

test('Redis hangs with connections open: refused jobs do not run when it goes on', async () => {
  const job = await expectJson(await submit(api, prompt), 202, GenerationJob);
  api.redis.pause();
  try {
    await expectRedisMissed(job.id);
  } finally {
    api.redis.resume();
  }
  await untilReady();
  // What a refused request had sent is executed now; each such record must end, and leave the queue.
  const settled = async () => {
    const { data } = await expectJson(await get('/v1/generations'), 200, GenerationList);
    return data.filter(({ status }) => status === 'queued').length <= 1 ? data : null;
  };
  let data = await settled();
  while (!data) {
    await sleep(50);
    data = await settled();
  }
  for (const other of data.filter(({ id }) => id !== job.id)) {
    expect(other).toMatchObject({ status: 'failed', error: { code: 'queue_unavailable', retryable: true } });
  }
  while ((await api.queues.queueCounts()).waiting > 1) await sleep(50);
});

test('the queue refuses a job whose record is written: the client is told, and the record ends as failed', async () => {
  // BullMQ's script meets a key of the wrong type.
  await api.client.set('{atelier}:generations:prioritized', 'in the way');
  const response = await submit(api, prompt);
  await expectProblem(response, 500, 'internal_error');
  const records = async () => (await api.jobs.list('default', 'generation')).records;
  while ((await records())[0]?.status !== 'failed') await sleep(10);
  expect((await records())[0]?.error?.code).toBe('queue_unavailable');
  await api.client.del('{atelier}:generations:prioritized');
  worker = startInstantWorker(api);
  const next = await expectJson(await submit(api, prompt, { Prefer: 'wait=30' }), 200, GenerationJob);
  expect(next.status).toBe('succeeded');
});

test('a job recorded by an API that died before it queued it is queued when Redis comes back', async () => {
  const response = await submit(api, prompt);
  const { id } = await expectJson(response, 202, GenerationJob);
  await api.queues.remove({ tenant: 'default', id });
  expect((await api.queues.queueCounts()).waiting).toBe(0);
  await api.redis.restart();
  await untilReady();
  while ((await api.queues.queueCounts()).waiting === 0) await sleep(20);
  worker = startInstantWorker(api);
  expect((await api.jobs.wait({ tenant: 'default', id }, 30_000))?.status).toBe('succeeded');
});

test('Redis lost during a wait: the job was accepted, and the answer says so', async () => {
  const waiting = submit(api, prompt, { Prefer: 'wait=2' });
  while ((await api.jobs.list('default', 'generation')).records.length === 0) await sleep(10);
  await api.redis.restart(() => sleep(2_200));
  const job = await expectJson(await waiting, 202, GenerationJob);
  await untilReady();
  expect((await api.jobs.get({ tenant: 'default', id: job.id }))?.status).toBe('queued');
});

test('store away: readiness names it, what needs it is refused, the rest goes on', async () => {
  worker = startInstantWorker(api);
  const job = await expectJson(await submit(api, prompt, { Prefer: 'wait=30' }), 200, GenerationJob);
  const { url } = job.output!.images[0]!;
  // Not by permissions, which do not bind root: a file stands where the folder was.
  await rename(api.storeDir, `${api.storeDir}-away`);
  await writeFile(api.storeDir, '');

  const { checks } = await expectJson(await get('/readyz'), 503, ReadinessView);
  expect({ redis: checks['redis']?.ok, store: checks['store']?.ok }).toEqual({ redis: true, store: false });
  const image = await fetch(url);
  expect(image.headers.get('retry-after')).toBe('5');
  await expectProblem(image, 503, 'store_unavailable');
  const before = await api.queues.queueCounts();
  await expectProblem(await submit(api, withImage), 503, 'store_unavailable');
  expect(await api.queues.queueCounts()).toEqual(before);
  expect((await get(`/v1/generations/${job.id}`)).status).toBe(200);

  await rm(api.storeDir);
  await rename(`${api.storeDir}-away`, api.storeDir);
  expect((await get('/readyz')).status).toBe(200);
  expect((await fetch(url)).status).toBe(200);
});
