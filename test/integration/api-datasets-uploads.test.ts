import { once } from 'node:events';
import { connect } from 'node:net';
import { Dataset, DatasetUploads, uploadArchiveKey, uploadKey } from '@atelier/shared';
import { type TestApi, expectJson, expectProblem, startTestApi } from '../support/api.ts';
import {
  announce,
  announced,
  complete,
  describeDatasetUploads,
  expire,
  send,
} from '../support/dataset-uploads.ts';
import { emptyStore, pair, storedKeys } from '../support/datasets.ts';
import { zip } from '../support/zip.ts';

const T = 'default';
const MAX_BYTES = 400_000;
const KEY = 'a-key-of-this-test';

let api: TestApi;
beforeAll(async () => {
  api = await startTestApi({ ATELIER_MAX_DATASET_BYTES: String(MAX_BYTES) });
});
afterAll(() => api.close());
beforeEach(() => emptyStore(api));

describe('with a folder', () => {
  describeDatasetUploads(() => api);
});

test.each<[string, object, string]>([
  ['no size', { size: undefined }, 'size: '],
  ['an empty archive', { size: 0 }, 'size: found 0'],
  ['no name', { name: undefined }, 'name: found nothing'],
  ['a file name without a letter', { name: undefined, filename: '墨.zip' }, 'filename: found'],
  ['a hash that is none', { sha256: 'abc' }, 'sha256: found "abc", allowed are 64 hexadecimal digits'],
  ['a misspelt field', { filenam: 'x' }, 'filenam: unknown field; did you mean filename?'],
])('an announcement with %s is refused', async (_, wrong, detail) => {
  const response = await announce(api, { name: 'ink', size: 100, ...wrong });
  expect((await expectProblem(response, 400, 'validation_failed')).detail).toContain(detail);
  expect(await storedKeys(api)).toEqual([]);
});

test('more than a dataset may have is refused before anything is sent', async () => {
  const response = await announce(api, { name: 'ink', size: MAX_BYTES + 1 });
  const { detail } = await expectProblem(response, 413, 'payload_too_large');
  expect(detail).toBe(`size: found ${MAX_BYTES + 1}, allowed are at most ${MAX_BYTES} bytes`);
  expect((await announced(api, { size: MAX_BYTES })).max_bytes).toBe(MAX_BYTES);
});

test('the URL of the API takes what was announced, with its token, in time, until it is completed', async () => {
  const upload = await announced(api);
  expect(upload.url).toBe(`${api.url}/v1/datasets/uploads/${upload.id}`);
  await expectProblem(await send(upload, undefined, { 'X-Upload-Token': 'x' }), 401, 'unauthorized');
  const body = zip([...pair('001'), ...pair('002')]);
  const short = await expectProblem(await send(upload, body.subarray(1)), 400, 'validation_failed');
  expect(short.detail).toBe(`body: found ${body.length - 1} bytes, announced were ${body.length}`);
  await expectProblem(await send(upload, Buffer.concat([body, body])), 413, 'payload_too_large');
  await expectProblem(
    await send(upload, body, { 'Content-Type': 'text/plain' }),
    415,
    'unsupported_media_type',
  );
  const unsized = await fetch(upload.url, {
    method: 'PUT',
    headers: upload.headers,
    body: new Blob([new Uint8Array(body.subarray(1))]).stream(),
    duplex: 'half',
  });
  await expectProblem(unsized, 400, 'validation_failed');
  expect(await api.store.head(uploadArchiveKey(T, upload.id))).toBeNull();

  expect((await send(upload)).status).toBe(200);
  await expectJson(await complete(api, upload.id), 201, Dataset);
  await expectProblem(await send(upload), 409, 'conflict');
  const late = await announced(api);
  await expire(api, late.id);
  await expectProblem(await send(late), 410, 'upload_expired');
  const url = upload.url.replace(/upl_\w+/, 'upl_x');
  await expectProblem(await send({ ...upload, url }), 404, 'not_found');
});

test('a client that leaves midway leaves nothing, and can send again', async () => {
  const upload = await announced(api);
  const { hostname, port, pathname } = new URL(upload.url);
  const socket = connect(Number(port), hostname);
  await once(socket, 'connect');
  const headers = Object.entries({ Host: 'localhost', 'Content-Length': '9999', ...upload.headers });
  const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`).join('');
  const { size } = JSON.parse(
    Buffer.concat(await (await api.store.get(uploadKey(T, upload.id)))!.body.toArray()).toString(),
  ) as { size: number };
  socket.write(`PUT ${pathname} HTTP/1.1\r\n${lines.replace('9999', String(size))}\r\nPK`);
  await new Promise((resolve) => setTimeout(resolve, 200));
  socket.destroy();
  await expectProblem(await complete(api, upload.id), 409, 'conflict');
  expect((await send(upload)).status).toBe(200);
  await expectJson(await complete(api, upload.id), 201, Dataset);
});

test('an archive of another size than announced, whatever took it, is no dataset', async () => {
  const upload = await announced(api);
  const bytes = Buffer.from('seven b');
  await api.store.put(uploadArchiveKey(T, upload.id), bytes, { contentType: 'application/zip' });
  const { detail } = await expectProblem(await complete(api, upload.id), 422, 'dataset_invalid');
  expect(detail).toContain('size: found 7 bytes, announced were ');
  expect(await storedKeys(api)).toEqual([]);
});

test('a completion that died before the dataset was there is made again, one that died after it is done', async () => {
  const upload = await announced(api);
  await send(upload);
  const uploads = new DatasetUploads(api.store, api.client);
  const died = uploads.complete(T, upload.id, () => Promise.reject(new Error('the process died')));
  await expect(died).rejects.toThrow('the process died');
  const { id } = await expectJson(await complete(api, upload.id), 201, Dataset);
  // What a process leaves that dies before it removes the archive.
  await api.store.put(uploadArchiveKey(T, upload.id), Buffer.from('x'), { contentType: 'application/zip' });
  expect((await expectProblem(await complete(api, upload.id), 409, 'conflict')).detail).toContain(id);
  expect(await api.store.head(uploadArchiveKey(T, upload.id))).toBeNull();
});

test('rests of uploads are swept after a day, not before', async () => {
  const [sent, waiting] = [await announced(api), await announced(api)];
  await send(sent);
  const uploads = new DatasetUploads(api.store, api.client);
  await uploads.sweep(T);
  expect(await storedKeys(api)).toHaveLength(3);
  await uploads.sweep(T, Date.now() + 25 * 3_600_000);
  expect(await storedKeys(api)).toEqual([]);
  await expectProblem(await complete(api, waiting.id), 404, 'not_found');
});

test('with API keys, announcing and completing ask for one, the URL for its token alone', async () => {
  const closed = await startTestApi({ ATELIER_API_KEYS: KEY });
  try {
    await expectProblem(await announce(closed, { name: 'ink', size: 10 }), 401, 'unauthorized');
    const body = zip(pair('001'));
    const headers = { Authorization: `Bearer ${KEY}` };
    const response = await fetch(`${closed.url}/v1/datasets/uploads`, {
      method: 'POST',
      headers: { ...headers, 'Content-Type': 'application/json' },
      body: JSON.stringify({ name: 'ink', size: body.length }),
    });
    const upload = (await response.json()) as Awaited<ReturnType<typeof announced>>;
    expect((await send(upload, body)).status).toBe(200);
    await expectProblem(await complete(closed, upload.id), 401, 'unauthorized');
    const completed = await fetch(`${upload.url}/complete`, { method: 'POST', headers });
    await expectJson(completed, 201, Dataset);
  } finally {
    await closed.close();
  }
});
