import { writeFileSync } from 'node:fs';
import { mkdir, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import sharp from 'sharp';
import { rejection, temporaryFolder } from '../../checkpoint/testing.ts';
import type { DatasetEncoders } from './encoders.ts';
import { prepareItems, type PrepareOptions, type PrepareProgress, withTrigger } from './items.ts';

const temporary = temporaryFolder();
const FACTOR = 8;
let folder: string;
let cacheDir: string;
let calls: string[];

/** Arithmetic in place of networks: a latent is the pixel at its corner, an embedding is the caption's code units. */
const encoders: DatasetEncoders = {
  encodeImage: async (pixels, width, height) => {
    calls.push(`${width}x${height}`);
    const latent = { channels: 3, height: height / FACTOR, width: width / FACTOR };
    const mean = new Float32Array(3 * latent.height * latent.width);
    for (let i = 0, c = 0; c < 3; c++)
      for (let y = 0; y < latent.height; y++)
        for (let x = 0; x < latent.width; x++)
          mean[i++] = pixels[(y * FACTOR * width + x * FACTOR) * 3 + c]! / 3;
    return { latent, mean, logVariance: mean.map((value) => -value) };
  },
  encodeText: async (caption) => {
    calls.push(caption);
    const units = Float32Array.from({ length: 8 }, (_, i) => (caption.codePointAt(i) ?? 0) / 7);
    return { text: units, pooled: units.subarray(0, 2) };
  },
};

const prepare = (options: Partial<PrepareOptions> = {}) =>
  prepareItems(folder, { resolution: 128, multiple: 16, cacheDir, modelKey: 'a', encoders, ...options });

async function addPair(stem: string, caption: string, width: number, height: number, red: number) {
  const picture = sharp({ create: { width, height, channels: 3, background: { r: red, g: 9, b: 90 } } });
  await writeFile(join(folder, 'images', `${stem}.png`), await picture.png().toBuffer());
  await writeFile(join(folder, 'prompts', `${stem}.txt`), caption);
}

function sizes(width: number, height: number) {
  return {
    bucket: { width, height },
    latent: { channels: 3, height: height / FACTOR, width: width / FACTOR },
  };
}

let run = 0;
beforeEach(async () => {
  run += 1;
  folder = temporary.file(`set-${run}`);
  cacheDir = temporary.file(`cache-${run}/nested`);
  calls = [];
  await mkdir(join(folder, 'images'), { recursive: true });
  await mkdir(join(folder, 'prompts'), { recursive: true });
  await addPair('1', 'a cat', 200, 200, 30);
  await addPair('2', 'a dog', 400, 200, 60);
  await addPair('10', 'a cat', 150, 200, 90);
});

test('items have what their pictures and captions are encoded to', async () => {
  const { items, validation, empty, skipped } = await prepare();
  expect(validation).toEqual([]);
  expect(skipped).toEqual([]);
  expect(items.map(({ stem, caption, bucket, latent }) => ({ stem, caption, bucket, latent }))).toEqual([
    { stem: '1', caption: 'a cat', ...sizes(128, 128) },
    { stem: '2', caption: 'a dog', ...sizes(176, 96) },
    { stem: '10', caption: 'a cat', ...sizes(112, 144) },
  ]);
  for (const [i, red] of [30, 60, 90].entries()) {
    const { mean, logVariance, latent } = items[i]!;
    const plane = latent.height * latent.width;
    const expected = [red, 9, 90].flatMap((value) =>
      Array.from({ length: plane }, () => Math.fround(value / 3)),
    );
    expect([...mean]).toEqual(expected);
    expect([...logVariance]).toEqual(expected.map((value) => -value));
  }
  expect(items[1]!.text[2]).toBeCloseTo(100 / 7);
  expect(items[1]!.pooled).toHaveLength(2);
  expect([...empty.text]).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
  // Equal captions are encoded once and share their memory.
  expect(items[2]!.text).toBe(items[0]!.text);
  expect(calls).toEqual(['128x128', '176x96', '112x144', '', 'a cat', 'a dog']);
});

test('what was encoded once comes from the cache, bit for bit', async () => {
  const first = await prepare();
  const files = await readdir(cacheDir);
  expect(files).toHaveLength(6);
  calls = [];
  expect(await prepare()).toEqual(first);
  expect(calls).toEqual([]);
  expect(await readdir(cacheDir)).toEqual(files);
});

test('only what changed is encoded again', async () => {
  await prepare();
  const calledFor = async (options: Partial<PrepareOptions> = {}) => {
    calls = [];
    await prepare(options);
    return calls;
  };
  await addPair('2', 'a dog', 400, 200, 61);
  expect(await calledFor()).toEqual(['176x96']);
  await writeFile(join(folder, 'prompts/1.txt'), 'two cats');
  expect(await calledFor()).toEqual(['two cats']);
  expect(await calledFor({ triggerWord: 'inkw' })).toEqual(['inkw, two cats', 'inkw, a dog', 'inkw, a cat']);
  expect(await calledFor({ squareCrop: true })).toEqual(['128x128', '128x128']);
  expect(await calledFor({ resolution: 64 })).toHaveLength(3);
  expect(await calledFor({ modelKey: 'b' })).toHaveLength(7);
});

test('a damaged file of the cache is made again', async () => {
  const first = await prepare();
  for (const [i, name] of (await readdir(cacheDir)).entries())
    if (i % 2 === 0) await truncate(join(cacheDir, name), 100);
    else await writeFile(join(cacheDir, name), 'other bytes');
  calls = [];
  expect(await prepare()).toEqual(first);
  expect(calls).toHaveLength(6);
  calls = [];
  await prepare();
  expect(calls).toEqual([]);
});

test('nothing is left in the cache when an encoder fails', async () => {
  const encodeImage = async () => {
    throw new Error('out of order');
  };
  await expect(prepare({ encoders: { ...encoders, encodeImage } })).rejects.toThrow('out of order');
  expect(await readdir(cacheDir)).toEqual([]);
});

test('a picture that changes after its check does not get into the cache', async () => {
  const other = await readFile(join(folder, 'images/2.png'));
  const changed = prepare({
    onProgress: ({ phase, done, total }) => {
      if (phase === 'check' && done === total) writeFileSync(join(folder, 'images/1.png'), other);
    },
  });
  expect((await rejection(changed)).details).toEqual({
    problems: [{ file: 'images/1.png', problem: 'was changed while the dataset was read' }],
  });
  expect(await readdir(cacheDir)).toEqual([]);
});

test('every k-th picture is held back', async () => {
  const stems = async (validationEvery: number) => {
    const { items, validation } = await prepare({ validationEvery });
    return [items, validation].map((part) => part.map(({ stem }) => stem).join(' '));
  };
  expect(await stems(2)).toEqual(['1 10', '2']);
  expect(await stems(3)).toEqual(['1 2', '10']);
  expect(await stems(4)).toEqual(['1 2 10', '']);
  await expect(stems(1)).rejects.toThrow('validationEvery: found 1, allowed are whole numbers from 2');
});

test('bad files are told when they are skipped, and refused otherwise', async () => {
  await writeFile(join(folder, 'images/3.png'), 'no picture');
  await writeFile(join(folder, 'prompts/3.txt'), 'a cow');
  const problem = 'cannot be read as a picture: Input buffer contains unsupported image format';
  const error = await rejection(prepare());
  expect(error.message).toBe(`The dataset has a problem:\nimages/3.png ${problem}`);
  expect(calls).toEqual([]);
  const { items, skipped } = await prepare({ skipBad: true });
  expect(items.map(({ stem }) => stem)).toEqual(['1', '2', '10']);
  expect(skipped).toEqual([{ file: 'images/3.png', problem }]);
});

test('progress of each phase, and an end to it', async () => {
  const seen: PrepareProgress[] = [];
  await prepare({ onProgress: (progress) => seen.push(progress) });
  expect(seen.map(({ phase, done, total }) => `${phase} ${done}/${total}`)).toEqual(
    ['check', 'images', 'captions'].flatMap((phase) => [1, 2, 3].map((done) => `${phase} ${done}/3`)),
  );
  const controller = new AbortController();
  calls = [];
  const canceled = prepare({
    modelKey: 'canceled',
    signal: controller.signal,
    onProgress: ({ phase }) => phase === 'images' && controller.abort(),
  });
  expect((await rejection(canceled)).code).toBe('canceled');
  expect(calls).toEqual(['128x128']);
});

test.each([
  ['a cat', 'inkw', 'inkw, a cat'],
  ['INKW painting of a cat', 'inkw', 'INKW painting of a cat'],
  ['a pink cat', 'ink', 'ink, a pink cat'],
  ['a cat in ink, wet', ' ink ', 'a cat in ink, wet'],
  ['a cat (x)', '(x)', 'a cat (x)'],
  ['a cat by a-b', 'a-b', 'a cat by a-b'],
  ['ein Bär', 'Bä', 'Bä, ein Bär'],
  ['a cat', '', 'a cat'],
])('%p with the trigger word %p is %p', (caption, trigger, expected) => {
  expect(withTrigger(caption, trigger)).toBe(expected);
});

test('the cache holds safetensors files', async () => {
  await prepare();
  const [name] = (await readdir(cacheDir)).filter((file) => file.startsWith('latents-'));
  expect(name).toMatch(/^latents-[0-9a-f]{64}\.safetensors$/);
  const bytes = await readFile(join(cacheDir, name!));
  const header = bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString();
  expect(Object.keys(JSON.parse(header) as object).toSorted()).toEqual(['log_variance', 'mean']);
});
