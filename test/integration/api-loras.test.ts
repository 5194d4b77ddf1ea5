import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GenerationJob, LoraList, LoraVersionView, LoraView } from '@atelier/shared';
import { type TestApi, expectJson, expectProblem, startTestApi, submit } from '../support/api.ts';
import { startInstantWorker } from '../support/instant-worker.ts';
import { MINI_MODULE, writeSmallLora } from '../support/lora-files.ts';
import { until } from '../support/studio.ts';

let api: TestApi;
let dir: string;
let first: Buffer;
let second: Buffer;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-lora-files-'));
  api = await startTestApi({ ATELIER_MAX_LORA_BYTES: '200000' });
  first = await readFile(await writeSmallLora(join(dir, 'a.safetensors'), { seed: 1 }));
  second = await readFile(await writeSmallLora(join(dir, 'b.safetensors'), { seed: 2 }));
});
afterAll(async () => {
  await api.close();
  await rm(dir, { recursive: true });
});
beforeEach(async () => {
  for (const { key } of (await api.store.list('')).objects) await api.store.delete(key);
  await api.client.flushall();
});

const put = (name: string, body: Uint8Array, query = '', headers: Record<string, string> = {}) =>
  fetch(`${api.url}/v1/loras/${name}${query}`, { method: 'PUT', body: new Uint8Array(body), headers });
const get = (path: string, init: RequestInit = {}) => fetch(api.url + path, init);
const patch = (name: string, body: unknown) =>
  fetch(`${api.url}/v1/loras/${name}`, {
    method: 'PATCH',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
const remove = (name: string) => fetch(`${api.url}/v1/loras/${name}`, { method: 'DELETE' });
const imported = async (name: string, body = first) =>
  LoraVersionView.parse(await (await put(name, body)).json());
const stored = async () => (await api.store.list('')).objects.map(({ key }) => key);
const left = () => readdir(join(api.config.ATELIER_CACHE_DIR, 'uploads')).catch(() => []);

describe('import', () => {
  test('checks a file against the model and makes it a version', async () => {
    const response = await put('ink', first, '?filename=ink_v1.safetensors');
    expect(response.headers.get('location')).toBe('/v1/loras/ink/versions/1');
    const version = await expectJson(response, 201, LoraVersionView);
    expect(version).toMatchObject({
      name: 'ink',
      version: 1,
      size: first.length,
      sha256: createHash('sha256').update(first).digest('hex'),
      dialects: ['peft'],
      rank: { min: 2, max: 2 },
      modules: { transformer: 1, text_encoder: 0 },
      base_model: 'mini',
      warnings: [],
      provenance: { source: 'import', filename: 'ink_v1.safetensors', training_job: null },
    });
    expect(await expectJson(await get('/v1/loras/ink/versions/1'), 200, LoraVersionView)).toEqual(version);
    const lora = await expectJson(await get('/v1/loras/ink'), 200, LoraView);
    expect(lora).toMatchObject({ name: 'ink', default_weight: 1, latest: version, versions: [1] });
    expect(await left()).toEqual([]);
  });

  test('of the same bytes answers 200 with the version that has them', async () => {
    await imported('ink');
    expect(await expectJson(await put('ink', first), 200, LoraVersionView)).toMatchObject({ version: 1 });
    expect(await expectJson(await put('ink', second), 201, LoraVersionView)).toMatchObject({ version: 2 });
    expect((await stored()).filter((key) => key.endsWith('.safetensors'))).toHaveLength(2);
  });

  test('several at once: each is a version with its own bytes', async () => {
    const files = await Promise.all(
      [3, 4, 5].map(async (seed) => readFile(await writeSmallLora(join(dir, `${seed}`), { seed }))),
    );
    const versions = await Promise.all(files.map((file) => imported('ink', file)));
    expect(versions.map(({ version }) => version).sort((a, b) => a - b)).toEqual([1, 2, 3]);
    for (const [i, { version }] of versions.entries()) {
      const file = await get(`/v1/loras/ink/file?version=${version}`);
      expect(Buffer.from(await file.arrayBuffer()).equals(files[i]!)).toBe(true);
    }
  });

  test.each<[string, () => Promise<Buffer> | Buffer, RegExp]>([
    [
      'that is no safetensors file',
      () => Buffer.from('PK\u0003\u0004 a zip file, or so it seems'),
      /header/i,
    ],
    ['that was cut off', () => first.subarray(0, -100), /the file/],
    [
      'of another shape than the model',
      async () => readFile(await writeSmallLora(join(dir, 'wide'), { features: 48 })),
      new RegExp(`${MINI_MODULE.replaceAll('.', '\\.')}.*48`),
    ],
  ])('of a file %s is refused and leaves nothing', async (_, make, message) => {
    const problem = await expectProblem(await put('ink', await make()), 422, 'lora_invalid');
    expect(problem.detail).toMatch(message);
    expect(problem.detail).not.toContain(api.config.ATELIER_CACHE_DIR);
    expect(await stored()).toEqual([]);
    expect(await left()).toEqual([]);
    await expectProblem(await get('/v1/loras/ink'), 404, 'not_found');
  });

  test('that ends early leaves nothing', async () => {
    const { hostname, port } = new URL(api.url);
    const socket = connect(Number(port), hostname);
    await once(socket, 'connect');
    socket.write(`PUT /v1/loras/ink HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${first.length}\r\n\r\n`);
    socket.write(first.subarray(0, 1_000));
    await until(async () => (await left()).length === 1);
    socket.destroy();
    await until(async () => (await left()).length === 0);
    expect(await stored()).toEqual([]);
  });

  test('is refused for what the request says already', async () => {
    const big = await expectProblem(await put('ink', Buffer.alloc(200_001)), 413, 'payload_too_large');
    expect(big.detail).toBe('body: allowed are at most 200000 bytes');
    const stream = new ReadableStream({
      pull: (controller) => controller.enqueue(new Uint8Array(50_000)),
    });
    const endless = fetch(`${api.url}/v1/loras/ink`, {
      method: 'PUT',
      body: stream,
      duplex: 'half',
      headers: { 'Content-Type': 'application/octet-stream' },
    });
    await expectProblem(await endless, 413, 'payload_too_large');
    await expectProblem(await put('ink', Buffer.alloc(0)), 400, 'validation_failed');
    await expectProblem(
      await put('ink', first, '', { 'Content-Type': 'text/plain' }),
      415,
      'unsupported_media_type',
    );
    await expectProblem(await put('ink', first, '?model=sdxl'), 422, 'unknown_model');
    for (const name of ['Ink', 'a%20b', '-a', 'a'.repeat(65), 'a%2Fb']) {
      const problem = await expectProblem(await put(name, first), 400, 'validation_failed');
      expect(problem.errors).toEqual([{ field: 'name', message: expect.stringContaining('lower case') }]);
    }
    expect(await stored()).toEqual([]);
  });
});

test('the list pages by name and filters by tag; the index survives a flush of Redis', async () => {
  for (const name of ['c', 'a', 'b']) await imported(name);
  await patch('b', { tags: ['ink'], description: 'black', trigger_words: ['sumi'], default_weight: -0.5 });
  await api.client.flushall();
  const page = await expectJson(await get('/v1/loras?limit=2'), 200, LoraList);
  expect([page.data.map(({ name }) => name), page.next_cursor]).toEqual([['a', 'b'], 'b']);
  expect(page.data[1]).toMatchObject({ description: 'black', trigger_words: ['sumi'], default_weight: -0.5 });
  const rest = await expectJson(await get('/v1/loras?cursor=b'), 200, LoraList);
  expect([rest.data.map(({ name }) => name), rest.next_cursor]).toEqual([['c'], null]);
  const tagged = await expectJson(await get('/v1/loras?tag=ink'), 200, LoraList);
  expect(tagged.data.map(({ name }) => name)).toEqual(['b']);
  await expectProblem(await get('/v1/loras?limit=0'), 400, 'validation_failed');
});

test('settings are checked by field; a rename keeps versions; what is not there is 404', async () => {
  await imported('ink');
  await imported('paper', second);
  const wrong = await expectProblem(
    await patch('ink', { default_weight: 9, tgas: [] }),
    400,
    'validation_failed',
  );
  expect(wrong.errors!.map(({ field }) => field).sort()).toEqual(['default_weight', 'tgas']);
  await expectProblem(await patch('ink', {}), 400, 'validation_failed');
  await expectProblem(await patch('ink', { name: 'paper' }), 409, 'conflict');
  const renamed = await expectJson(await patch('ink', { name: 'sumi', default_weight: 0.7 }), 200, LoraView);
  expect(renamed).toMatchObject({ name: 'sumi', default_weight: 0.7, versions: [1] });
  for (const response of [
    await get('/v1/loras/ink'),
    await get('/v1/loras/sumi/versions/2'),
    await get('/v1/loras/sumi/file?version=2'),
    await patch('ink', { tags: [] }),
    await remove('ink'),
    await get('/v1/loras/%2e%2e'),
  ])
    await expectProblem(response, 404, 'not_found');
});

test('downloads the file, whole, in part, and not again', async () => {
  const { sha256 } = await imported('ink');
  const whole = await get('/v1/loras/ink/file');
  expect(whole.headers.get('content-disposition')).toBe('attachment; filename="ink@1.safetensors"');
  expect(Buffer.from(await whole.arrayBuffer()).equals(first)).toBe(true);
  const part = await get('/v1/loras/ink/file?version=1', { headers: { Range: 'bytes=0-7' } });
  expect([part.status, Buffer.from(await part.arrayBuffer())]).toEqual([206, first.subarray(0, 8)]);
  const again = await get('/v1/loras/ink/file', { headers: { 'If-None-Match': `"${sha256}"` } });
  expect(again.status).toBe(304);
});

test.each(['peft', 'kohya'])('exports in the form %s, which can be imported again', async (format) => {
  await imported('ink');
  const response = await get(`/v1/loras/ink/file?format=${format}`);
  expect(response.headers.get('content-disposition')).toBe(
    `attachment; filename="ink@1.${format}.safetensors"`,
  );
  const exported = Buffer.from(await response.arrayBuffer());
  expect(response.headers.get('content-length')).toBe(String(exported.length));
  expect(exported.toString('latin1', 8, 2_000)).toContain('ink@1');
  const again = await expectJson(await put('again', exported), 201, LoraVersionView);
  expect(again).toMatchObject({ dialects: [format], rank: { min: 2, max: 2 }, modules: { transformer: 1 } });
  expect(await left()).toEqual([]);
});

test('an unknown form is refused', async () => {
  await imported('ink');
  await expectProblem(await get('/v1/loras/ink/file?format=onnx'), 400, 'validation_failed');
});

describe('a job', () => {
  const styled = (...styles: object[]) => submit(api, { prompt: 'a', steps: 2, styles });

  test('keeps the version and weight that its styles stand for when it is accepted', async () => {
    await imported('ink');
    await imported('ink', second);
    await patch('ink', { default_weight: 0.6 });
    const job = await expectJson(
      await styled({ lora: 'ink' }, { lora: 'ink@1', weight: -0.25 }),
      202,
      GenerationJob,
    );
    const pinned = [
      { lora: 'ink@2', weight: 0.6 },
      { lora: 'ink@1', weight: -0.25 },
    ];
    expect(job.input.styles).toEqual(pinned);
    const third = await readFile(await writeSmallLora(join(dir, 'c'), { seed: 3 }));
    await imported('ink', third);
    const read = await expectJson(await get(`/v1/generations/${job.id}`), 200, GenerationJob);
    expect(read.input.styles).toEqual(pinned);
    const next = await expectJson(await styled({ lora: 'ink' }), 202, GenerationJob);
    expect(next.input.styles).toEqual([{ lora: 'ink@3', weight: 0.6 }]);
  });

  test('with a style that there is not is refused, with names that are close', async () => {
    await imported('ink-wash');
    await imported('paper');
    const problem = await expectProblem(
      await styled({ lora: 'ink-wsh' }, { lora: 'paper@7' }, { lora: 'ink' }, { lora: 'Üx' }),
      422,
      'unknown_lora',
    );
    expect(problem.errors).toEqual([
      { field: 'styles[0].lora', message: expect.stringContaining('did you mean ink-wash?') },
      { field: 'styles[1].lora', message: expect.stringContaining('paper has the versions 1') },
      { field: 'styles[2].lora', message: expect.stringContaining('did you mean ink-wash?') },
      { field: 'styles[3].lora', message: expect.stringContaining('there is no such LoRA; GET /v1/loras') },
    ]);
    expect(await api.queues.queueCounts()).toMatchObject({ waiting: 0 });
  });

  test('that has not ended keeps its LoRAs from being deleted or renamed', async () => {
    await imported('ink');
    const job = await expectJson(await styled({ lora: 'ink' }), 202, GenerationJob);
    for (const response of [await remove('ink'), await patch('ink', { name: 'sumi' })])
      expect((await expectProblem(response, 409, 'lora_in_use')).detail).toContain(job.id);
    await expectJson(await get('/v1/loras/ink'), 200, LoraView);
    const worker = startInstantWorker(api);
    await until(async () => (await api.jobs.get({ tenant: 'default', id: job.id }))?.status === 'succeeded');
    await worker.close();
    expect((await remove('ink')).status).toBe(204);
    await expectProblem(await styled({ lora: 'ink' }), 422, 'unknown_lora');
  });

  test('and a delete at the same time: either sees the other', async () => {
    for (let round = 0; round < 15; round++) {
      await imported('ink', round % 2 === 0 ? first : second);
      const [job, deleted] = await Promise.all([styled({ lora: 'ink' }), remove('ink')]);
      if (job.status === 202) {
        expect(deleted.status).toBe(409);
        const { id } = GenerationJob.parse(await job.json());
        await fetch(`${api.url}/v1/generations/${id}/cancel`, { method: 'POST' });
      } else {
        await expectProblem(job, 422, 'unknown_lora');
      }
    }
  });
});

test('an import is refused while the store is away, and nothing of it is seen', async () => {
  await imported('paper');
  const objects = join(api.storeDir, 'objects');
  const kept = join(dir, 'kept');
  await rename(api.storeDir, kept);
  await writeFile(api.storeDir, '');
  try {
    await expectProblem(await put('ink', first), 503, 'store_unavailable');
  } finally {
    await rm(api.storeDir);
    await rename(kept, api.storeDir);
  }
  expect(await readdir(join(objects, 'tenants/default/loras'))).toEqual(['paper']);
  expect(await left()).toEqual([]);
});
