import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { GenerationJob, GenerationList, ModelList, QueueList, WorkerList } from '@atelier/shared';
import { type TestApi, expectJson, expectProblem, startTestApi, submit } from '../support/api.ts';
import { INSTANT_PNG, type InstantWorker, startInstantWorker } from '../support/instant-worker.ts';

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

const get = (path: string, headers: Record<string, string> = {}) => fetch(api.url + path, { headers });
const cancel = (id: string) => fetch(`${api.url}/v1/generations/${id}/cancel`, { method: 'POST' });

async function accepted(body: Record<string, unknown> = {}): Promise<GenerationJob> {
  return expectJson(await submit(api, { prompt: 'a red apple', ...body }), 202, GenerationJob);
}

async function finished(body: Record<string, unknown> = {}): Promise<GenerationJob> {
  const response = await submit(api, { prompt: 'a red apple', ...body }, { Prefer: 'wait=30' });
  return expectJson(response, 200, GenerationJob);
}

test('a submitted job is durable, queued and has every default resolved', async () => {
  const response = await submit(api, { prompt: 'a red apple', metadata: { order: '7' } });
  const job = await expectJson(response, 202, GenerationJob);
  expect(response.headers.get('location')).toBe(`/v1/generations/${job.id}`);
  expect(response.headers.get('preference-applied')).toBeNull();
  expect(job).toMatchObject({
    status: 'queued',
    queue: { position: 0 },
    input: { model: 'mini', width: 128, height: 128, steps: 20, count: 1, format: 'png', priority: 'normal' },
    metadata: { order: '7' },
    attempts: 0,
    output: null,
  });
  expect(job.input.seed).toBeGreaterThanOrEqual(0);
  expect(await expectJson(await get(`/v1/generations/${job.id}`), 200, GenerationJob)).toEqual(job);
  const queue = await expectJson(await get('/v1/queue'), 200, QueueList);
  expect(queue.generation).toMatchObject({ waiting: 1, active: 0, demand: 1 });
});

test('the position counts the jobs that start before, priority first', async () => {
  const ids = [];
  for (const priority of ['low', 'normal', 'high']) ids.push((await accepted({ priority })).id);
  const positions = await Promise.all(
    ids.map(
      async (id) => (await expectJson(await get(`/v1/generations/${id}`), 200, GenerationJob)).queue.position,
    ),
  );
  expect(positions).toEqual([2, 1, 0]);
});

test('an init image is in the store under the tenant before the job is queued, and its key stays inside', async () => {
  const file = `data:image/png;base64,${INSTANT_PNG.toString('base64')}`;
  const job = await accepted({ image: { file, strength: 0.3 } });
  expect(job.input.image).toEqual({ strength: 0.3 });
  const record = await api.jobs.get({ tenant: 'default', id: job.id });
  const key = (record!.input as { image: { key: string } }).image.key;
  expect(key).toMatch(/^tenants\/default\//);
  const object = await api.store.get(key);
  expect(object?.contentType).toBe('image/png');
  const chunks = await object!.body.toArray();
  expect(Buffer.concat(chunks as Buffer[]).equals(INSTANT_PNG)).toBe(true);
});

describe('Prefer: wait', () => {
  test('answers 200 with the finished job when it ends in time', async () => {
    worker = startInstantWorker(api);
    const response = await submit(
      api,
      { prompt: 'a', seed: 7, count: 2 },
      { Prefer: 'respond-async, wait=30' },
    );
    expect(response.headers.get('preference-applied')).toBe('wait=30');
    const job = await expectJson(response, 200, GenerationJob);
    expect(job).toMatchObject({ status: 'succeeded', attempts: 1, queue: { position: null } });
    expect(job.output?.images.map((image) => image.seed)).toEqual([7, 8]);
    expect(job.output?.images[1]?.url).toBe(`${api.url}/v1/generations/${job.id}/images/1`);
  });

  test('answers 202 when time is up, and the job goes on', async () => {
    const gate = Promise.withResolvers<void>();
    worker = startInstantWorker(api, () => gate.promise);
    const response = await submit(api, { prompt: 'a' }, { Prefer: 'wait=1' });
    const job = await expectJson(response, 202, GenerationJob);
    expect(job.status).toBe('running');
    expect(response.headers.get('preference-applied')).toBe('wait=1');
    gate.resolve();
    expect((await api.jobs.wait({ tenant: 'default', id: job.id }, 30_000))?.status).toBe('succeeded');
  });

  test('a client that hangs up does not cancel its job', async () => {
    const gate = Promise.withResolvers<void>();
    worker = startInstantWorker(api, () => gate.promise);
    const hangUp = new AbortController();
    const request = fetch(`${api.url}/v1/generations`, {
      method: 'POST',
      signal: hangUp.signal,
      headers: { 'Content-Type': 'application/json', Prefer: 'wait=60' },
      body: JSON.stringify({ prompt: 'a' }),
    });
    const id = await firstId();
    hangUp.abort();
    await expect(request).rejects.toThrow('abort');
    gate.resolve();
    expect((await api.jobs.wait({ tenant: 'default', id }, 30_000))?.status).toBe('succeeded');
  });

  test('a job that fails is a 200 with a coded error', async () => {
    worker = startInstantWorker(api, () => Promise.reject(new Error('no luck')));
    const job = await finished();
    expect(job).toMatchObject({ status: 'failed', output: null });
    expect(job.error).toEqual({ code: 'engine_failed', message: 'Error: no luck', retryable: true });
  });

  test('a shutdown ends the wait with 202 instead of cutting the connection', async () => {
    const waiting = submit(api, { prompt: 'a' }, { Prefer: 'wait=60' });
    await firstId();
    const started = Date.now();
    await api.closeServer();
    await expectJson(await waiting, 202, GenerationJob);
    expect(Date.now() - started).toBeLessThan(2_000);
  });

  async function firstId(): Promise<string> {
    for (;;) {
      const { records } = await api.jobs.list('default', 'generation');
      if (records[0]) return records[0].id;
      await sleep(10);
    }
  }
});

describe('cancel', () => {
  test('a queued job is canceled at once and leaves the queue; again changes nothing', async () => {
    const { id } = await accepted();
    const job = await expectJson(await cancel(id), 200, GenerationJob);
    expect(job).toMatchObject({ status: 'canceled', queue: { position: null } });
    expect(await api.queues.queueCounts()).toMatchObject({ waiting: 0 });
    expect(await expectJson(await cancel(id), 200, GenerationJob)).toEqual(job);
  });

  test('a running job is told to stop, and only that one', async () => {
    const gate = Promise.withResolvers<void>();
    worker = startInstantWorker(api, (_record, step) => (step === 2 ? gate.promise : undefined));
    const { id } = await accepted();
    const other = await accepted();
    await until(async () => (await api.jobs.get({ tenant: 'default', id }))?.progress.step === 1);
    expect((await expectJson(await cancel(id), 202, GenerationJob)).status).toBe('running');
    gate.resolve();
    expect((await api.jobs.wait({ tenant: 'default', id }, 30_000))?.status).toBe('canceled');
    expect((await api.jobs.wait({ tenant: 'default', id: other.id }, 30_000))?.status).toBe('succeeded');
  });

  test('a finished job is a conflict, an unknown one is not found', async () => {
    worker = startInstantWorker(api);
    const { id } = await finished();
    const problem = await expectProblem(await cancel(id), 409, 'conflict');
    expect(problem.detail).toContain('has succeeded');
    await expectProblem(await cancel('gen_00000000000000000000000000000000'), 404, 'not_found');
  });
});

describe('list', () => {
  test('pages go through all jobs once, newest first', async () => {
    const ids: string[] = [];
    for (let i = 0; i < 7; i++) ids.unshift((await accepted()).id);
    const seen: string[] = [];
    let cursor: string | null = null;
    do {
      const page: GenerationList = await expectJson(
        await get(`/v1/generations?limit=3${cursor ? `&cursor=${cursor}` : ''}`),
        200,
        GenerationList,
      );
      expect(page.data.length).toBeLessThanOrEqual(3);
      seen.push(...page.data.map((job) => job.id));
      cursor = page.next_cursor;
    } while (cursor);
    expect(seen).toEqual(ids);
  });

  test('a status filter pages through the matching jobs alone', async () => {
    const ids: string[] = [];
    for (let i = 0; i < 8; i++) ids.unshift((await accepted()).id);
    const canceled = ids.filter((_, index) => index % 2 === 0);
    for (const id of canceled) await cancel(id);
    const first = await expectJson(await get('/v1/generations?status=canceled&limit=3'), 200, GenerationList);
    expect(first.data.map((job) => job.id)).toEqual(canceled.slice(0, 3));
    const second = await expectJson(
      await get(`/v1/generations?status=canceled&limit=3&cursor=${first.next_cursor}`),
      200,
      GenerationList,
    );
    expect(second.data.map((job) => job.id)).toEqual(canceled.slice(3));
    expect(second.next_cursor).toBeNull();
    expect((await expectJson(await get('/v1/generations?status=failed'), 200, GenerationList)).data).toEqual(
      [],
    );
  });
});

describe('images', () => {
  test('an image is the stored bytes with all that caches and players need', async () => {
    worker = startInstantWorker(api);
    const image = (await finished()).output!.images[0]!;
    const response = await fetch(image.url);
    expect(response.status).toBe(200);
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'image/png',
      'content-length': String(INSTANT_PNG.length),
      'cache-control': 'private, max-age=31536000, immutable',
      'accept-ranges': 'bytes',
      etag: `"${image.sha256}"`,
    });
    const bytes = Buffer.from(await response.arrayBuffer());
    expect(createHash('sha256').update(bytes).digest('hex')).toBe(image.sha256);

    const head = await fetch(image.url, { method: 'HEAD' });
    expect(head.headers.get('content-length')).toBe(String(INSTANT_PNG.length));
    const known = await fetch(image.url, { headers: { 'If-None-Match': `"${image.sha256}"` } });
    expect(known.status).toBe(304);
  });

  test.each([
    ['bytes=0-7', 206, 0, 8, undefined],
    ['bytes=-4', 206, INSTANT_PNG.length - 4, INSTANT_PNG.length, undefined],
    ['bytes=10-', 206, 10, INSTANT_PNG.length, undefined],
    ['bytes=0-1,4-5', 200, 0, INSTANT_PNG.length, undefined],
    ['pages=1-2', 200, 0, INSTANT_PNG.length, undefined],
    ['bytes=0-7', 200, 0, INSTANT_PNG.length, '"of another file"'],
  ])('range %s is answered %d', async (range, status, start, end, ifRange) => {
    worker = startInstantWorker(api);
    const { url } = (await finished()).output!.images[0]!;
    const headers = { Range: range, ...(ifRange ? { 'If-Range': ifRange } : {}) };
    const response = await fetch(url, { headers });
    expect(response.status).toBe(status);
    const bytes = Buffer.from(await response.arrayBuffer());
    expect(bytes.equals(INSTANT_PNG.subarray(start, end))).toBe(true);
    const contentRange = `bytes ${start}-${end - 1}/${INSTANT_PNG.length}`;
    expect(response.headers.get('content-range')).toBe(status === 206 ? contentRange : null);
  });

  test('what is not there is a problem that no cache keeps', async () => {
    const queued = await accepted();
    const early = await get(`/v1/generations/${queued.id}/images/0`);
    expect((await expectProblem(early, 404, 'not_found')).detail).toContain('is queued and has no images');

    worker = startInstantWorker(api);
    const job = await finished();
    const past = await get(`/v1/generations/${job.id}/images/1`);
    expect((await expectProblem(past, 404, 'not_found')).detail).toContain('has images 0 to 0');
    await expectProblem(await get(`/v1/generations/${job.id}/images/x`), 404, 'not_found');
    const far = await fetch(job.output!.images[0]!.url, { headers: { Range: 'bytes=5000-' } });
    await expectProblem(far, 416, 'range_not_satisfiable');

    const record = await api.jobs.get({ tenant: 'default', id: job.id });
    await api.store.delete(record!.output!.images[0]!.key);
    const gone = await fetch(job.output!.images[0]!.url);
    expect(gone.headers.get('cache-control')).toBe('no-store');
    await expectProblem(gone, 404, 'not_found');
  });
});

test('models and workers are shown without what is inside', async () => {
  const models = await expectJson(await get('/v1/models'), 200, ModelList);
  expect(models.data[0]).toMatchObject({
    name: 'mini',
    default: true,
    defaults: { width: 128, height: 128 },
  });
  expect(await expectJson(await get('/v1/workers'), 200, WorkerList)).toEqual({ data: [] });
});

async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(10);
}
