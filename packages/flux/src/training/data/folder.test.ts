import { mkdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import sharp from 'sharp';
import { rejection, temporaryFolder } from '../../checkpoint/testing.ts';
import { readDataset } from './folder.ts';

const temporary = temporaryFolder();
const INK_WASH = join(import.meta.dirname, '../../../../../examples/ink-wash');
const RESOLUTION = 256;

/** A PNG of one colour that `shade` tells apart from the others. */
const picture = (shade: number, width = 128, height = width) =>
  sharp({ create: { width, height, channels: 3, background: { r: shade, g: 40, b: 200 } } }).png();
const png = (shade: number, width?: number, height?: number) => picture(shade, width, height).toBuffer();

/** A dataset's folder with exactly these files. */
async function dataset(files: Readonly<Record<string, Uint8Array | string>>): Promise<string> {
  const folder = temporary.file('dataset');
  await rm(folder, { recursive: true, force: true });
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(join(folder, name), content);
  }
  return folder;
}

const read = (folder: string) => readDataset(folder, { resolution: RESOLUTION });

async function problems(folder: string): Promise<string[]> {
  const error = await rejection(read(folder));
  expect(error.code).toBe('dataset_invalid');
  const found = error.details['problems'] as { file: string; problem: string }[];
  const lines = found.map(({ file, problem }) => `${file} ${problem}`);
  expect(error.message.split('\n').slice(1)).toEqual(lines);
  return lines;
}

test('pairs come in natural order, with sizes and captions on one line; clutter is passed over', async () => {
  const folder = await dataset({
    'images/10.PNG': await png(1),
    'images/9.webp': await picture(2, 96, 200).webp({ lossless: true }).toBuffer(),
    'images/a b.jpeg': await picture(3).jpeg().toBuffer(),
    'images/.DS_Store': 'x',
    'images/Thumbs.db': 'x',
    'prompts/10.txt': '\uFEFF a fox\r\n  in snow \n',
    'prompts/9.TXT': 'a tall tree',
    'prompts/a b.txt': 'ein Bär',
    'prompts/notes.md': 'x',
    'README.md': 'x',
  });
  const { pairs, problems: found } = await read(folder);
  expect(found).toEqual([]);
  expect(pairs.map(({ stem, caption, width, height }) => [stem, caption, width, height])).toEqual([
    ['9', 'a tall tree', 96, 200],
    ['10', 'a fox in snow', 128, 128],
    ['a b', 'ein Bär', 128, 128],
  ]);
  expect(pairs[1]!.image).toBe(join(folder, 'images/10.PNG'));
  expect(pairs[1]!.sha256).toMatch(/^[0-9a-f]{64}$/);
});

describe('a folder with everything wrong', () => {
  let folder: string;
  beforeEach(async () => {
    const whole = await sharp({
      create: { width: 128, height: 128, channels: 3, background: '#000', noise: { type: 'gaussian' } },
    })
      .png()
      .toBuffer();
    folder = await dataset({
      'images/1.png': await png(1),
      'prompts/1.txt': 'good',
      'images/2.png': await png(2),
      'images/3.png': await png(3),
      'prompts/3.txt': ' \n',
      'images/4.png': whole.subarray(0, whole.length - 2000),
      'prompts/4.txt': 'cut short',
      'images/5.png': await png(1),
      'prompts/5.txt': 'same bytes',
      'images/6.webp': await picture(1).webp({ lossless: true }).toBuffer(),
      'prompts/6.txt': 'same pixels',
      'images/7.png': await png(7, 300, 63),
      'prompts/7.txt': 'tiny',
      'images/8.gif': await picture(8).gif().toBuffer(),
      'prompts/8.txt': 'a GIF',
      'images/9.png/inside.png': await png(9),
      'prompts/9.txt': 'a folder',
      'prompts/10.txt': 'without picture',
      'images/11.png': await png(11),
      'prompts/11.txt': Uint8Array.of(0x61, 0xff, 0x62),
      'images/12.png': await png(12),
      'images/12.jpg': await picture(120).jpeg().toBuffer(),
      'prompts/12.txt': 'two pictures',
      'images/13.png': await png(13),
      'prompts/13.txt': 'long '.repeat(20_000),
    });
  });

  test('every problem is listed with its file', async () => {
    expect(await problems(folder)).toEqual([
      'images/2.png has no prompt prompts/2.txt',
      expect.stringMatching(/^images\/4\.png cannot be read as a picture: ./),
      'images/5.png has the same bytes as images/1.png',
      'images/6.webp shows the same pixels as images/1.png',
      'images/7.png has 300 x 63 pixels; the shorter side must have at least 64',
      'images/8.gif has the extension .gif; allowed are .png, .jpg, .jpeg, .webp',
      'images/9.png is not a regular file',
      'images/12.png has the stem of images/12.jpg; a prompt belongs to one picture',
      'prompts/3.txt is empty',
      'prompts/8.txt has no picture in images',
      'prompts/10.txt has no picture in images',
      'prompts/11.txt is not UTF-8',
      'prompts/13.txt has 100000 bytes; allowed are at most 65536',
    ]);
  });

  test('what is good remains when the rest is to be skipped, and the problems are told', async () => {
    const kept = await readDataset(folder, { resolution: RESOLUTION, skipBad: true });
    expect(kept.pairs.map(({ caption }) => caption)).toEqual(['good', 'two pictures']);
    expect(kept.problems).toHaveLength(13);
  });
});

test('of two equal pictures the one without other problems is kept', async () => {
  const folder = await dataset({
    'images/1.png': await png(1),
    'images/2.png': await png(1),
    'prompts/2.txt': 'with prompt',
  });
  const { pairs } = await readDataset(folder, { resolution: RESOLUTION, skipBad: true });
  expect(pairs.map(({ stem }) => stem)).toEqual(['2']);
});

test('a quarter of the resolution is the least size', async () => {
  const folder = await dataset({ 'images/1.png': await png(1, 191, 400), 'prompts/1.txt': 'x' });
  const limit = (resolution: number) => readDataset(folder, { resolution });
  expect((await limit(764)).pairs).toHaveLength(1);
  expect((await rejection(limit(768))).message).toContain('the shorter side must have at least 192');
});

test('an empty set is refused, whether bad pictures are skipped or not', async () => {
  expect(await problems(await dataset({ 'README.md': 'x' }))).toEqual([
    'images is missing; a folder was expected',
    'prompts is missing; a folder was expected',
  ]);
  expect(await problems(await dataset({ 'images/.keep': '', 'prompts/.keep': '' }))).toEqual([
    'images has no picture',
  ]);
  const bad = await dataset({ 'images/1.png': 'x', 'prompts/1.txt': 'x' });
  const skipping = rejection(readDataset(bad, { resolution: RESOLUTION, skipBad: true }));
  expect((await skipping).message).toContain('The dataset has a problem:\nimages/1.png cannot be read');
});

test('a message is bounded; the details are not', async () => {
  const names = Array.from({ length: 60 }, (_, i) => `prompts/${i}.txt`);
  const folder = await dataset(Object.fromEntries(names.map((name) => [name, 'x'])));
  const error = await rejection(read(folder));
  expect(error.message.split('\n')).toHaveLength(52);
  expect(error.message).toContain('61 problems');
  expect(error.message.endsWith('\nand 11 more')).toBe(true);
  expect(error.details['problems']).toHaveLength(61);
});

test('a check can be canceled', async () => {
  const folder = await dataset({
    'images/1.png': await png(1),
    'images/2.png': await png(2),
    'prompts/1.txt': 'x',
    'prompts/2.txt': 'x',
  });
  const controller = new AbortController();
  const seen: number[] = [];
  const canceled = readDataset(folder, {
    resolution: RESOLUTION,
    signal: controller.signal,
    onProgress: (done) => {
      seen.push(done);
      controller.abort();
    },
  });
  expect((await rejection(canceled)).code).toBe('canceled');
  expect(seen).toEqual([1]);
});

test('the sample dataset has 200 pairs and no problem', async () => {
  const { pairs, problems: found } = await read(INK_WASH);
  expect(found).toEqual([]);
  expect(pairs).toHaveLength(200);
  expect(pairs.every(({ width, height }) => width === 256 && height === 256)).toBe(true);
  expect(pairs[0]).toMatchObject({ stem: '001', caption: 'ink wash painting of a spider web' });
});
