import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { Dataset, DatasetList, datasetFileKey } from '@atelier/shared';
import sharp from 'sharp';
import { type TestApi, expectJson, expectProblem, startTestApi } from '../support/api.ts';
import { until } from '../support/studio.ts';
import { type ZipEntry, zip } from '../support/zip.ts';

const MAX_BYTES = 400_000;

let api: TestApi;
let png: Buffer;
let jpeg: Buffer;
beforeAll(async () => {
  api = await startTestApi({
    ATELIER_MAX_DATASET_BYTES: String(MAX_BYTES),
    ATELIER_MAX_DATASET_IMAGES: '5',
    ATELIER_MAX_DATASET_IMAGE_BYTES: '150000',
    ATELIER_MAX_ARCHIVE_RATIO: '10',
  });
  const picture = sharp({ create: { width: 24, height: 16, channels: 3, background: '#c33' } });
  png = await picture.clone().png().toBuffer();
  jpeg = await picture.clone().jpeg().toBuffer();
});
afterAll(() => api.close());
beforeEach(async () => {
  for (const { key } of (await api.store.list('')).objects) await api.store.delete(key);
});

const image = (stem: string, more: Partial<ZipEntry> = {}): ZipEntry => ({
  name: `images/${stem}.png`,
  data: png,
  ...more,
});
const prompt = (stem: string, more: Partial<ZipEntry> = {}): ZipEntry => ({
  name: `prompts/${stem}.txt`,
  data: `ink wash painting number ${stem}`,
  ...more,
});
const pair = (stem: string): ZipEntry[] => [image(stem), prompt(stem)];

const get = (path: string) => fetch(api.url + path);
const post = (body: Uint8Array, query = '?name=ink-wash', type = 'application/zip') =>
  fetch(`${api.url}/v1/datasets${query}`, {
    method: 'POST',
    body: new Uint8Array(body),
    headers: { 'Content-Type': type },
  });
const postForm = (parts: readonly (readonly [string, string | Uint8Array, string?])[]) => {
  const form = new FormData();
  for (const [field, value, filename] of parts)
    if (typeof value === 'string') form.append(field, value);
    else form.append(field, new Blob([new Uint8Array(value)]), filename);
  return fetch(`${api.url}/v1/datasets`, { method: 'POST', body: form });
};
const uploaded = async (entries: readonly ZipEntry[], name = 'ink-wash') =>
  expectJson(await post(zip(entries), `?name=${name}`), 201, Dataset);
const stored = async () => (await api.store.list('')).objects.map(({ key }) => key);
const left = () => readdir(join(api.config.ATELIER_CACHE_DIR, 'uploads')).catch(() => []);
const expectNothingLeft = async () => {
  expect(await stored()).toEqual([]);
  expect(await left()).toEqual([]);
};
const sha256 = (bytes: Uint8Array | string) => createHash('sha256').update(bytes).digest('hex');

describe('upload', () => {
  test('of an archive: every file is stored as it is, and described', async () => {
    const entries = [
      { name: 'images/', mode: 0o040755 },
      { name: 'prompts/', mode: 0o040755 },
      prompt('002', { stored: true }),
      { name: 'images/002.JPG', data: jpeg, stored: true },
      ...pair('001'),
      { name: '__MACOSX/images/._001.png', data: 'resource fork' },
      { name: 'images/.DS_Store', data: 'Bud1' },
    ];
    const response = await post(zip(entries));
    const dataset = await expectJson(response, 201, Dataset);
    expect(response.headers.get('location')).toBe(`/v1/datasets/${dataset.id}`);
    const text = 'ink wash painting number 001';
    expect(dataset).toMatchObject({
      name: 'ink-wash',
      items: 2,
      bytes: png.length + jpeg.length + 2 * text.length,
      warnings: ['left out: __MACOSX/images/._001.png, images/.DS_Store'],
      files: [
        { path: 'images/001.png', size: png.length, sha256: sha256(png), width: 24, height: 16 },
        { path: 'images/002.jpg', size: jpeg.length, sha256: sha256(jpeg), width: 24, height: 16 },
        { path: 'prompts/001.txt', size: text.length, sha256: sha256(text) },
        { path: 'prompts/002.txt', size: text.length },
      ],
    });
    for (const { path, sha256: expected } of dataset.files) {
      const object = await api.store.get(datasetFileKey('default', dataset.id, path));
      expect(sha256(Buffer.concat(await object!.body.toArray()))).toBe(expected);
    }
    expect(await stored()).toHaveLength(5);
    expect(await left()).toEqual([]);
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
        ['images', png, '001.png'],
        ['images', png, '002.png'],
        ['prompts', words('001'), '001.txt'],
        ['prompts', words('002'), '002.txt'],
      ]),
      201,
      Dataset,
    );
    expect(byArchive.items).toBe(2);
    expect(byFiles.files).toEqual(byArchive.files);
    expect(await left()).toEqual([]);
  });

  test('a file whose name says another kind is kept with a warning', async () => {
    const dataset = await uploaded([image('001', { data: jpeg }), prompt('001')]);
    expect(dataset.warnings).toEqual(['images/001.png is image/jpeg, its name says image/png']);
    const object = await api.store.head(datasetFileKey('default', dataset.id, 'images/001.png'));
    expect(object?.contentType).toBe('image/jpeg');
  });
});

describe('an archive with one bad entry is refused under its name', () => {
  const zeros = Buffer.alloc(140_000);

  test.each<[string, () => ZipEntry[], string, RegExp]>([
    [
      'a parent path',
      () => [{ name: 'images/../../001.png', data: png }],
      'images/../../001.png',
      /leads out/,
    ],
    ['an absolute path', () => [{ name: '/etc/001.png', data: png }], '/etc/001.png', /absolute/],
    ['a drive', () => [{ name: 'C:/001.png', data: png }], 'C:/001.png', /absolute/],
    ['a backslash', () => [{ name: 'images\\001.png', data: png }], 'images\\001.png', /backslash/],
    ['another folder', () => [{ name: 'ink/images/001.png', data: png }], 'ink/images/001.png', /not part/],
    ['another name', () => [{ name: 'images/cat.png', data: png }], 'images/cat.png', /not part/],
    [
      'a symbolic link',
      () => [image('002', { data: '/etc/passwd', mode: 0o120777 }), prompt('002')],
      'images/002.png',
      /symbolic link/,
    ],
    ['a device', () => [image('002', { mode: 0o020666 }), prompt('002')], 'images/002.png', /no plain file/],
    ['an encrypted entry', () => [image('002', { flags: 1 }), prompt('002')], 'images/002.png', /encrypted/],
    ['another method', () => [image('002', { method: 14 }), prompt('002')], 'images/002.png', /method 14/],
    [
      'a nested archive',
      () => [{ name: 'images/002.zip', data: zip(pair('002')) }],
      'images/002.zip',
      /archive inside/,
    ],
    [
      'a nested archive by another name',
      () => [image('002', { data: zip(pair('003')) }), prompt('002')],
      'images/002.png',
      /not a PNG/,
    ],
    [
      'a nested archive as a prompt',
      () => [image('002'), prompt('002', { data: zip(pair('003')) })],
      'prompts/002.txt',
      /not text/,
    ],
    ['a name twice', () => [image('001')], 'images/001.png', /twice/],
    [
      'a number twice',
      () => [{ name: 'images/001.jpg', data: jpeg }],
      'images/001.jpg',
      /number of images\/001.png/,
    ],
    ['an image without a prompt', () => [image('002')], 'images/002.png', /no prompt: prompts\/002.txt/],
    ['a prompt without an image', () => [prompt('002')], 'prompts/002.txt', /of no image/],
    ['an empty prompt', () => [image('002'), prompt('002', { data: ' \n' })], 'prompts/002.txt', /empty/],
    [
      'a prompt in Latin-1',
      () => [image('002'), prompt('002', { data: Buffer.from('caf\xe9', 'latin1') })],
      'prompts/002.txt',
      /UTF-8/,
    ],
    [
      'a prompt that is a book',
      () => [image('002'), prompt('002', { data: 'word '.repeat(4_000), stored: true })],
      'prompts/002.txt',
      /16384 bytes/,
    ],
    [
      'a text as an image',
      () => [image('002', { data: 'no picture' }), prompt('002')],
      'images/002.png',
      /not a PNG/,
    ],
    [
      'too many pixels',
      () => [image('002', { data: withSize(60_000, 60_000) }), prompt('002')],
      'images/002.png',
      /60000 x 60000/,
    ],
    [
      'too many bytes',
      () => [
        image('002', { data: Buffer.concat([png, Buffer.alloc(150_000)]), stored: true }),
        prompt('002'),
      ],
      'images/002.png',
      /150000 bytes/,
    ],
    ['a bomb', () => [image('002', { data: zeros }), prompt('002')], 'images/002.png', /10 times/],
    [
      'a bomb that claims to be small',
      () => [image('002', { data: zeros, claims: { size: 100 } }), prompt('002')],
      'images/002.png',
      /more than the 100 bytes/,
    ],
    [
      'a size that claims too much',
      () => [image('002', { claims: { size: 5_000 } }), prompt('002')],
      'images/002.png',
      /archive says 5000/,
    ],
    [
      'a wrong checksum',
      () => [image('002', { claims: { crc: 1 } }), prompt('002')],
      'images/002.png',
      /checksum/,
    ],
    [
      'bytes that are not deflated',
      () => [image('002', { stored: true, method: 8 }), prompt('002')],
      'images/002.png',
      /cannot be unpacked/,
    ],
  ])('%s', async (_, bad, field, message) => {
    const problem = await expectProblem(await post(zip([...pair('001'), ...bad()])), 422, 'dataset_invalid');
    expect(problem.errors).toEqual([{ field, message: expect.stringMatching(message) }]);
    expect(problem.detail).toContain(`1 problem; ${field}: `);
    await expectNothingLeft();
  });
});

/** The picture with another size in its header. */
function withSize(width: number, height: number): Buffer {
  const changed = Buffer.from(png);
  changed.writeUInt32BE(width, 16);
  changed.writeUInt32BE(height, 20);
  return changed;
}

describe('an archive is refused as a whole', () => {
  test('with every problem in one answer', async () => {
    const entries = [
      image('001'),
      prompt('002'),
      { name: '../x', data: 'x' },
      image('003', { data: '?' }),
      prompt('003'),
    ];
    const { errors } = await expectProblem(await post(zip(entries)), 422, 'dataset_invalid');
    expect(errors?.map(({ field }) => field)).toEqual([
      '../x',
      'images/001.png',
      'prompts/002.txt',
      'images/003.png',
    ]);
    await expectNothingLeft();
  });

  test.each<[string, () => Buffer, RegExp]>([
    [
      'no zip file',
      () => Buffer.from('not a zip file, whatever the header of the request says'),
      /no zip file/,
    ],
    ['cut off at the end', () => zip(pair('001')).subarray(0, -30), /cut off/],
    ['with a directory that ends early', () => zip(pair('001'), { entries: 3 }), /cut off/],
    [
      'with entries that overlap',
      () =>
        zip([
          image('001', { data: Buffer.alloc(2_000, 'abc'), stored: true }),
          ...['002', '003'].map((stem) =>
            image(stem, { data: Buffer.alloc(2_000, 'abc'), stored: true, sameBytesAs: 0 }),
          ),
        ]),
      /overlap/,
    ],
  ])('that is %s', async (_, make, message) => {
    const { errors } = await expectProblem(await post(make()), 422, 'dataset_invalid');
    expect(errors).toEqual([{ field: 'archive', message: expect.stringMatching(message) }]);
    await expectNothingLeft();
  });

  test('cut off at the beginning: the offsets are wrong, nothing is taken', async () => {
    await expectProblem(await post(zip(pair('001')).subarray(30)), 422, 'dataset_invalid');
    await expectNothingLeft();
  });

  test('that is empty', async () => {
    const { errors } = await expectProblem(await post(zip([])), 422, 'dataset_invalid');
    expect(errors).toEqual([{ field: 'images', message: 'found none, needed is at least one' }]);
  });

  test('with too many images, entries, or bytes that only show when it is unpacked', async () => {
    const many = ['1', '2', '3', '4', '5', '6'].flatMap(pair);
    const images = await expectProblem(await post(zip(many)), 413, 'payload_too_large');
    expect(images.detail).toBe('body: found 6 files, allowed are at most 5 images, each with its prompt');
    const crowd = Array.from({ length: 85 }, (_, i) => ({ name: `__MACOSX/${i}`, data: '' }));
    await expectProblem(await post(zip([...pair('001'), ...crowd])), 413, 'payload_too_large');

    // Each is allowed by itself: 140000 bytes, about 5 to 1.
    const filler = Buffer.from(
      Array.from({ length: 140_000 }, (_, i) => (i % 5 === 0 ? (i * i * 31) >>> 7 : 0)),
    );
    const large = (stem: string) => [image(stem, { data: Buffer.concat([png, filler]) }), prompt(stem)];
    await uploaded([...large('001'), ...large('002')]);
    const body = zip(['001', '002', '003'].flatMap(large));
    expect(body.length).toBeLessThan(MAX_BYTES);
    const bytes = await expectProblem(await post(body), 413, 'payload_too_large');
    expect(bytes.detail).toContain('unpacked');
    expect((await stored()).filter((key) => key.endsWith('dataset.json'))).toHaveLength(1);
    expect(await left()).toEqual([]);
  });
});

describe('a request is refused', () => {
  test('for its type, its name, or a body that is empty or too large', async () => {
    const body = zip(pair('001'));
    await expectProblem(await post(body, '?name=ink', 'text/plain'), 415, 'unsupported_media_type');
    await expectProblem(await post(body, ''), 400, 'validation_failed');
    const named = await expectProblem(await post(body, '?name=Ink%20Wash'), 400, 'validation_failed');
    expect(named.errors?.[0]?.field).toBe('name');
    await expectProblem(await post(Buffer.alloc(0)), 400, 'validation_failed');
    await expectProblem(await post(Buffer.alloc(MAX_BYTES + 1)), 413, 'payload_too_large');
    await expectNothingLeft();
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
    await expectNothingLeft();
  });

  test('whose form has paths as file names, too many files, or none', async () => {
    const path = await postForm([
      ['name', 'ink'],
      ['images', png, '../../001.png'],
    ]);
    const { errors } = await expectProblem(path, 422, 'dataset_invalid');
    expect(errors?.[0]).toEqual({
      field: 'images/../../001.png',
      message: expect.stringMatching(/leads out/),
    });
    const many = Array.from({ length: 90 }, (_, i) => ['images', png, `${i}.png`] as const);
    await expectProblem(await postForm([['name', 'ink'], ...many]), 413, 'payload_too_large');
    await expectProblem(await postForm([['name', 'ink']]), 422, 'dataset_invalid');
    await expectNothingLeft();
  });

  test('whose form is malformed or never ends', async () => {
    await expectProblem(await post(Buffer.from('x'), '', 'multipart/form-data'), 400, 'validation_failed');
    const cut = Buffer.from(
      '--b\r\nContent-Disposition: form-data; name="images"; filename="1.png"\r\n\r\nPNG',
    );
    await expectProblem(await post(cut, '', 'multipart/form-data; boundary=b'), 400, 'validation_failed');
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
    await expectNothingLeft();
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
    await until(async () => (await left()).length === 1);
    socket.destroy();
    await until(async () => (await left()).length === 0);
    await expectNothingLeft();
  });
});

test('listed oldest first, page by page; deleted with all files; what is not there is 404', async () => {
  const made: Dataset[] = [];
  for (const name of ['a', 'b', 'a']) made.push(await uploaded(pair('001'), name));
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
  expect((await stored()).filter((key) => key.includes(made[0]!.id))).toEqual([]);
  expect((await expectJson(await get('/v1/datasets'), 200, DatasetList)).data).toHaveLength(2);
});
