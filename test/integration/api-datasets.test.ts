import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect } from 'node:net';
import { Dataset, DatasetList, datasetFileKey } from '@atelier/shared';
import { type TestApi, expectJson, expectProblem, startTestApi } from '../support/api.ts';
import {
  JPEG,
  PNG,
  emptyStore,
  expectNothingLeft,
  image,
  pair,
  postArchive,
  prompt,
  scratchFiles,
  storedKeys,
  uploaded,
} from '../support/datasets.ts';
import { until } from '../support/studio.ts';
import { zip } from '../support/zip.ts';

const MAX_BYTES = 400_000;

let api: TestApi;
beforeAll(async () => {
  api = await startTestApi({
    ATELIER_MAX_DATASET_BYTES: String(MAX_BYTES),
    ATELIER_MAX_DATASET_IMAGES: '5',
  });
});
afterAll(() => api.close());
beforeEach(() => emptyStore(api));

const get = (path: string) => fetch(api.url + path);
const postForm = (parts: readonly (readonly [string, string | Uint8Array, string?])[]) => {
  const form = new FormData();
  for (const [field, value, filename] of parts)
    if (typeof value === 'string') form.append(field, value);
    else form.append(field, new Blob([new Uint8Array(value)]), filename);
  return fetch(`${api.url}/v1/datasets`, { method: 'POST', body: form });
};
const sha256 = (bytes: Uint8Array | string) => createHash('sha256').update(bytes).digest('hex');

describe('upload', () => {
  test('of an archive: every file is stored as it is, and described', async () => {
    const entries = [
      { name: 'images/', mode: 0o040755 },
      { name: 'prompts/', mode: 0o040755 },
      prompt('002', { stored: true }),
      { name: 'images/002.JPG', data: JPEG, stored: true },
      ...pair('001'),
      { name: '__MACOSX/images/._001.png', data: 'resource fork' },
      { name: 'images/.DS_Store', data: 'Bud1' },
    ];
    const response = await postArchive(api, zip(entries));
    const dataset = await expectJson(response, 201, Dataset);
    expect(response.headers.get('location')).toBe(`/v1/datasets/${dataset.id}`);
    const text = 'ink wash painting number 001';
    expect(dataset).toMatchObject({
      name: 'ink-wash',
      items: 2,
      bytes: PNG.length + JPEG.length + 2 * text.length,
      warnings: ['left out: __MACOSX/images/._001.png, images/.DS_Store'],
      files: [
        { path: 'images/001.png', size: PNG.length, sha256: sha256(PNG), width: 24, height: 16 },
        { path: 'images/002.jpg', size: JPEG.length, sha256: sha256(JPEG), width: 24, height: 16 },
        { path: 'prompts/001.txt', size: text.length, sha256: sha256(text) },
        { path: 'prompts/002.txt', size: text.length },
      ],
    });
    for (const { path, sha256: expected } of dataset.files) {
      const object = await api.store.get(datasetFileKey('default', dataset.id, path));
      expect(sha256(Buffer.concat(await object!.body.toArray()))).toBe(expected);
    }
    expect(await storedKeys(api)).toHaveLength(5);
    expect(await scratchFiles(api)).toEqual([]);
    expect(await expectJson(await get(`/v1/datasets/${dataset.id}`), 200, Dataset)).toEqual(dataset);
  });

  test('of a form with an archive, and of a form with loose files', async () => {
    const byArchive = await expectJson(
      await postForm([
        ['archive', zip([...pair('001'), ...pair('002')]), 'ink.zip'],
        ['name', 'ink-wash'],
      ]),
      201,
      Dataset,
    );
    const words = (stem: string) => Buffer.from(`ink wash painting number ${stem}`);
    const byFiles = await expectJson(
      await postForm([
        ['name', 'ink-wash'],
        ['images', PNG, '001.png'],
        ['images', PNG, '002.png'],
        ['prompts', words('001'), '001.txt'],
        ['prompts', words('002'), '002.txt'],
      ]),
      201,
      Dataset,
    );
    expect(byArchive.items).toBe(2);
    expect(byFiles.files).toEqual(byArchive.files);
    expect(await scratchFiles(api)).toEqual([]);
  });

  test('a file whose name says another kind is kept with a warning', async () => {
    const dataset = await uploaded(api, [image('001', { data: JPEG }), prompt('001')]);
    expect(dataset.warnings).toEqual(['images/001.png is image/jpeg, its name says image/png']);
    const object = await api.store.head(datasetFileKey('default', dataset.id, 'images/001.png'));
    expect(object?.contentType).toBe('image/jpeg');
  });
});

describe('a request is refused', () => {
  test('for its type, its name, or a body that is empty or too large', async () => {
    const body = zip(pair('001'));
    await expectProblem(
      await postArchive(api, body, '?name=ink', 'text/plain'),
      415,
      'unsupported_media_type',
    );
    await expectProblem(await postArchive(api, body, ''), 400, 'validation_failed');
    const named = await expectProblem(
      await postArchive(api, body, '?name=Ink%20Wash'),
      400,
      'validation_failed',
    );
    expect(named.errors?.[0]?.field).toBe('name');
    await expectProblem(await postArchive(api, Buffer.alloc(0)), 400, 'validation_failed');
    await expectProblem(await postArchive(api, Buffer.alloc(MAX_BYTES + 1)), 413, 'payload_too_large');
    await expectNothingLeft(api);
  });

  test.each<[string, Parameters<typeof postForm>[0], RegExp]>([
    ['without a name', [['images', Buffer.from('x'), '1.png']], /^name: /],
    [
      'with two archives',
      [
        ['name', 'ink'],
        ['archive', Buffer.from('x'), 'a'],
        ['archive', Buffer.from('x'), 'b'],
      ],
      /^archive: found more than one/,
    ],
    [
      'with an archive and files',
      [
        ['name', 'ink'],
        ['archive', Buffer.from('x'), 'a'],
        ['images', Buffer.from('x'), '1.png'],
      ],
      /one or the other/,
    ],
    [
      'with an unknown part',
      [
        ['name', 'ink'],
        ['picture', Buffer.from('x'), '1.png'],
      ],
      /^picture: unknown part/,
    ],
    [
      'with text for a file',
      [
        ['name', 'ink'],
        ['images', 'x'],
      ],
      /^images: found a value/,
    ],
  ])('whose form comes %s', async (_, parts, message) => {
    const { detail } = await expectProblem(await postForm(parts), 400, 'validation_failed');
    expect(detail).toMatch(message);
    await expectNothingLeft(api);
  });

  test('whose form has paths as file names, too many files, or none', async () => {
    const path = await postForm([
      ['name', 'ink'],
      ['images', PNG, '../../001.png'],
    ]);
    const { errors } = await expectProblem(path, 422, 'dataset_invalid');
    expect(errors?.[0]).toEqual({
      field: 'images/../../001.png',
      message: expect.stringMatching(/leads out/),
    });
    const many = Array.from({ length: 90 }, (_, i) => ['images', PNG, `${i}.png`] as const);
    await expectProblem(await postForm([['name', 'ink'], ...many]), 413, 'payload_too_large');
    await expectProblem(await postForm([['name', 'ink']]), 422, 'dataset_invalid');
    await expectNothingLeft(api);
  });

  test('whose form is malformed or never ends', async () => {
    await expectProblem(
      await postArchive(api, Buffer.from('x'), '', 'multipart/form-data'),
      400,
      'validation_failed',
    );
    const cut = Buffer.from(
      '--b\r\nContent-Disposition: form-data; name="images"; filename="1.png"\r\n\r\nPNG',
    );
    await expectProblem(
      await postArchive(api, cut, '', 'multipart/form-data; boundary=b'),
      400,
      'validation_failed',
    );
    const endless = fetch(`${api.url}/v1/datasets`, {
      method: 'POST',
      body: new ReadableStream({
        start: (controller) => controller.enqueue(new Uint8Array(cut)),
        pull: (controller) => controller.enqueue(new Uint8Array(50_000)),
      }),
      duplex: 'half',
      headers: { 'Content-Type': 'multipart/form-data; boundary=b' },
    });
    await expectProblem(await endless, 413, 'payload_too_large');
    await expectNothingLeft(api);
  });

  test('that ends early leaves nothing', async () => {
    const { hostname, port } = new URL(api.url);
    const socket = connect(Number(port), hostname);
    await once(socket, 'connect');
    socket.write(
      'POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n' +
        'Content-Type: multipart/form-data; boundary=b\r\n\r\n' +
        '--b\r\nContent-Disposition: form-data; name="images"; filename="1.png"\r\n\r\nPNG',
    );
    await until(async () => (await scratchFiles(api)).length === 1);
    socket.destroy();
    await until(async () => (await scratchFiles(api)).length === 0);
    await expectNothingLeft(api);
  });
});

test('listed oldest first, page by page; deleted with all files; what is not there is 404', async () => {
  const made: Dataset[] = [];
  for (const name of ['a', 'b', 'a']) made.push(await uploaded(api, pair('001'), name));
  const first = await expectJson(await get('/v1/datasets?limit=2'), 200, DatasetList);
  expect(first.data.map(({ id }) => id)).toEqual([made[0]!.id, made[1]!.id]);
  const rest = await expectJson(await get(`/v1/datasets?cursor=${first.next_cursor}`), 200, DatasetList);
  expect(rest).toEqual({
    data: [expect.objectContaining({ id: made[2]!.id, name: 'a', items: 1 })],
    next_cursor: null,
  });
  await expectProblem(await get('/v1/datasets?cursor=..%2Fx'), 400, 'validation_failed');

  const remove = () => fetch(`${api.url}/v1/datasets/${made[0]!.id}`, { method: 'DELETE' });
  expect((await remove()).status).toBe(204);
  await expectProblem(await remove(), 404, 'not_found');
  await expectProblem(await get(`/v1/datasets/${made[0]!.id}`), 404, 'not_found');
  await expectProblem(await get('/v1/datasets/..%2F..%2Floras'), 404, 'not_found');
  expect((await storedKeys(api)).filter((key) => key.includes(made[0]!.id))).toEqual([]);
  expect((await expectJson(await get('/v1/datasets'), 200, DatasetList)).data).toHaveLength(2);
});
