import { crc32 } from 'node:zlib';
import sharp, { type Sharp } from 'sharp';
import { fitImage, ImageProblem, inspectImage } from './image.ts';

const RED = [255, 0, 0];
const BLUE = [0, 0, 255];
const WHITE = [255, 255, 255];

/** A picture whose left half has one colour and whose right half another. */
function halves(width: number, height: number, left: number[], right: number[]) {
  const channels = left.length as 3 | 4;
  const data = Uint8Array.from({ length: width * height * channels }, (_, i) => {
    const x = Math.floor(i / channels) % width;
    return (x < width / 2 ? left : right)[i % channels]!;
  });
  return sharp(data, { raw: { width, height, channels } });
}

const pixel = (pixels: Uint8Array, width: number, x: number, y: number) => [
  ...pixels.subarray((y * width + x) * 3, (y * width + x) * 3 + 3),
];

async function problem(action: Promise<unknown>): Promise<string> {
  const error: unknown = await action.catch((cause: unknown) => cause);
  if (error instanceof ImageProblem) return error.message;
  throw new Error('an ImageProblem was expected', { cause: error });
}

test('the bucket is covered and the excess cut off on both sides', async () => {
  const thirds = Uint8Array.from({ length: 192 * 64 * 3 }, (_, i) => {
    const x = Math.floor(i / 3) % 192;
    return (x < 64 ? RED : x < 128 ? WHITE : BLUE)[i % 3]!;
  });
  const wide = await sharp(thirds, { raw: { width: 192, height: 64, channels: 3 } })
    .png()
    .toBuffer();
  const square = await fitImage(wide, { width: 64, height: 64 });
  expect(square).toHaveLength(64 * 64 * 3);
  expect(square.every((value) => value === 255)).toBe(true);
  const same = await fitImage(wide, { width: 192, height: 64 });
  expect([...same]).toEqual([...thirds]);
});

test('pictures are reduced with the Catmull-Rom kernel, widened by the factor: an edge overshoots by its formula', async () => {
  const file = await halves(64, 64, [64, 64, 64], [192, 192, 192]).png().toBuffer();
  const pixels = await fitImage(file, { width: 16, height: 16 });
  const row = Array.from({ length: 16 }, (_, x) => pixel(pixels, 16, x, 8)[0]!);
  const cubic = (x: number) => {
    const d = Math.abs(x);
    if (d >= 2) return 0;
    return d <= 1 ? 1.5 * d ** 3 - 2.5 * d ** 2 + 1 : -0.5 * d ** 3 + 2.5 * d ** 2 - 4 * d + 2;
  };
  const expected = row.map((_, i) => {
    const taps = Array.from({ length: 80 }, (_tap, k) => k - 8);
    const weights = taps.map((k) => cubic((4 * i + 1.5 - k) / 4));
    const weighted = taps.map((k, n) => weights[n]! * (k < 32 ? 64 : 192));
    return weighted.reduce((a, b) => a + b) / weights.reduce((a, b) => a + b);
  });
  row.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(2.5));
  expect(Math.min(...row)).toBeLessThan(64);
  expect(Math.max(...row)).toBeGreaterThan(192);
});

test('a picture that EXIF turns is upright, in its size too', async () => {
  // Orientation 6: the first row is shown as the right column.
  const file = await halves(96, 64, RED, BLUE).withMetadata({ orientation: 6 }).png().toBuffer();
  expect(await inspectImage(file)).toMatchObject({ width: 64, height: 96 });
  const pixels = await fitImage(file, { width: 64, height: 96 });
  expect(pixel(pixels, 64, 5, 5)).toEqual(RED);
  expect(pixel(pixels, 64, 60, 5)).toEqual(RED);
  expect(pixel(pixels, 64, 5, 90)).toEqual(BLUE);
});

test('what is transparent becomes white', async () => {
  const file = await halves(64, 64, [255, 0, 0, 0], [0, 0, 255, 128]).png().toBuffer();
  const pixels = await fitImage(file, { width: 64, height: 64 });
  expect(pixel(pixels, 64, 5, 5)).toEqual(WHITE);
  const [red, green, blue] = pixel(pixels, 64, 60, 5);
  expect(Math.abs(red! - 127)).toBeLessThanOrEqual(1);
  expect([green, blue]).toEqual([red, 255]);
});

test.each<[string, (s: Sharp) => Sharp, number]>([
  ['grey', (s: Sharp) => s.toColourspace('b-w').png(), 0],
  ['16 bits', (s: Sharp) => s.toColourspace('rgb16').png(), 0],
  ['a palette', (s: Sharp) => s.png({ palette: true }), 0],
  ['WebP', (s: Sharp) => s.webp({ lossless: true }), 0],
  ['CMYK', (s: Sharp) => s.toColourspace('cmyk').jpeg({ quality: 100, chromaSubsampling: '4:4:4' }), 20],
])('three bytes a pixel of %s', async (_, encode, tolerance) => {
  const grey = [90, 90, 90];
  const file = await encode(halves(64, 64, grey, grey)).toBuffer();
  const pixels = await fitImage(file, { width: 32, height: 32 });
  expect(pixels).toHaveLength(32 * 32 * 3);
  for (const value of pixel(pixels, 32, 16, 16)) expect(Math.abs(value - 90)).toBeLessThanOrEqual(tolerance);
});

test('a colour profile is applied: the red of Display P3 is beyond that of sRGB', async () => {
  const file = await halves(64, 64, [200, 0, 0], [200, 0, 0]).withIccProfile('p3').png().toBuffer();
  const raw = await sharp(file, { ignoreIcc: true }).raw().toBuffer();
  const pixels = await fitImage(file, { width: 64, height: 64 });
  expect(raw[0]).not.toBe(200);
  expect(Math.abs(pixel(pixels, 64, 0, 0)[0]! - 200)).toBeLessThanOrEqual(2);
});

test('one picture has one pixel hash in files of other bytes', async () => {
  const picture = halves(64, 64, RED, BLUE);
  const files = [
    await picture.clone().png({ compressionLevel: 0 }).toBuffer(),
    await picture.clone().png({ compressionLevel: 9 }).toBuffer(),
    await picture.clone().webp({ lossless: true }).toBuffer(),
    await halves(64, 64, BLUE, RED).png().toBuffer(),
  ];
  const [a, b, c, other] = await Promise.all(files.map((file) => inspectImage(file)));
  expect([b, c]).toEqual([a, a]);
  expect(other!.pixelHash).not.toBe(a!.pixelHash);
});

test('pictures that are cut short, of other formats, too large, or none at all', async () => {
  const noise = sharp({
    create: {
      width: 128,
      height: 128,
      channels: 3,
      noise: { type: 'gaussian', mean: 128, sigma: 30 },
      background: '#000',
    },
  });
  for (const whole of [await noise.clone().png().toBuffer(), await noise.clone().jpeg().toBuffer()])
    expect(await problem(inspectImage(whole.subarray(0, whole.length / 2)))).toMatch(
      /^cannot be read as a picture: /,
    );
  expect(await problem(inspectImage(Buffer.from('no picture')))).toMatch(/^cannot be read as a picture: /);
  expect(await problem(inspectImage(new Uint8Array(0)))).toMatch(/^cannot be read as a picture: /);
  expect(await problem(inspectImage(await noise.clone().gif().toBuffer()))).toBe(
    'is a picture of the format gif; allowed are PNG, JPEG and WebP',
  );
  const drawing = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>');
  expect(await problem(inspectImage(drawing))).toContain('of the format svg');
  // A header that claims more than there is; what follows is never decoded.
  const header = await noise.clone().png().toBuffer();
  header.writeUInt32BE(60_000, 16);
  header.writeUInt32BE(60_000, 20);
  expect(await problem(inspectImage(withHeaderChecksum(header)))).toBe(
    'has 60000 x 60000 pixels; allowed are at most 50000000',
  );
});

/** The PNG with the checksum that its changed IHDR needs. */
function withHeaderChecksum(png: Buffer): Buffer {
  png.writeUInt32BE(crc32(png.subarray(12, 29)), 29);
  return png;
}
