import { type TestApi, expectProblem, startTestApi } from '../support/api.ts';
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
import { type ZipEntry, zip } from '../support/zip.ts';

const MAX_BYTES = 400_000;

let api: TestApi;
beforeAll(async () => {
  api = await startTestApi({
    ATELIER_MAX_DATASET_BYTES: String(MAX_BYTES),
    ATELIER_MAX_DATASET_IMAGES: '5',
    ATELIER_MAX_DATASET_IMAGE_BYTES: '150000',
    ATELIER_MAX_ARCHIVE_RATIO: '10',
  });
});
afterAll(() => api.close());
beforeEach(() => emptyStore(api));

describe('an archive with one bad entry is refused under its name', () => {
  const zeros = Buffer.alloc(140_000);

  test.each<[string, () => ZipEntry[], string, RegExp]>([
    [
      'a parent path',
      () => [{ name: 'images/../../001.png', data: PNG }],
      'images/../../001.png',
      /leads out/,
    ],
    ['an absolute path', () => [{ name: '/etc/001.png', data: PNG }], '/etc/001.png', /absolute/],
    ['a drive', () => [{ name: 'C:/001.png', data: PNG }], 'C:/001.png', /absolute/],
    ['a backslash', () => [{ name: 'images\\001.png', data: PNG }], 'images\\001.png', /backslash/],
    ['another folder', () => [{ name: 'ink/images/001.png', data: PNG }], 'ink/images/001.png', /not part/],
    ['another name', () => [{ name: 'images/cat.png', data: PNG }], 'images/cat.png', /not part/],
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
      () => [{ name: 'images/001.jpg', data: JPEG }],
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
        image('002', { data: Buffer.concat([PNG, Buffer.alloc(150_000)]), stored: true }),
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
    const problem = await expectProblem(
      await postArchive(api, zip([...pair('001'), ...bad()])),
      422,
      'dataset_invalid',
    );
    expect(problem.errors).toEqual([{ field, message: expect.stringMatching(message) }]);
    expect(problem.detail).toContain(`1 problem; ${field}: `);
    await expectNothingLeft(api);
  });
});

/** The picture with another size in its header. */
function withSize(width: number, height: number): Buffer {
  const changed = Buffer.from(PNG);
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
    const { errors } = await expectProblem(await postArchive(api, zip(entries)), 422, 'dataset_invalid');
    expect(errors?.map(({ field }) => field)).toEqual([
      '../x',
      'images/001.png',
      'prompts/002.txt',
      'images/003.png',
    ]);
    await expectNothingLeft(api);
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
    const { errors } = await expectProblem(await postArchive(api, make()), 422, 'dataset_invalid');
    expect(errors).toEqual([{ field: 'archive', message: expect.stringMatching(message) }]);
    await expectNothingLeft(api);
  });

  test('cut off at the beginning: the offsets are wrong, nothing is taken', async () => {
    await expectProblem(await postArchive(api, zip(pair('001')).subarray(30)), 422, 'dataset_invalid');
    await expectNothingLeft(api);
  });

  test('that is empty', async () => {
    const { errors } = await expectProblem(await postArchive(api, zip([])), 422, 'dataset_invalid');
    expect(errors).toEqual([{ field: 'images', message: 'found none, needed is at least one' }]);
  });

  test('with too many images, entries, or bytes that only show when it is unpacked', async () => {
    const many = ['1', '2', '3', '4', '5', '6'].flatMap(pair);
    const images = await expectProblem(await postArchive(api, zip(many)), 413, 'payload_too_large');
    expect(images.detail).toBe('body: found 6 files, allowed are at most 5 images, each with its prompt');
    const crowd = Array.from({ length: 85 }, (_, i) => ({ name: `__MACOSX/${i}`, data: '' }));
    await expectProblem(await postArchive(api, zip([...pair('001'), ...crowd])), 413, 'payload_too_large');

    // Each is allowed by itself: 140000 bytes, about 5 to 1.
    const filler = Buffer.from(
      Array.from({ length: 140_000 }, (_, i) => (i % 5 === 0 ? (i * i * 31) >>> 7 : 0)),
    );
    const large = (stem: string) => [image(stem, { data: Buffer.concat([PNG, filler]) }), prompt(stem)];
    await uploaded(api, [...large('001'), ...large('002')]);
    const body = zip(['001', '002', '003'].flatMap(large));
    expect(body.length).toBeLessThan(MAX_BYTES);
    const bytes = await expectProblem(await postArchive(api, body), 413, 'payload_too_large');
    expect(bytes.detail).toContain('unpacked');
    expect((await storedKeys(api)).filter((key) => key.endsWith('dataset.json'))).toHaveLength(1);
    expect(await scratchFiles(api)).toEqual([]);
  });
});
