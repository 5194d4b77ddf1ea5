import { join } from 'node:path';
import { openModel } from '../checkpoint/model-files.ts';
import type { WeightLocator } from '../graph/weights.ts';
import type { VaeSpec } from '../checkpoint/spec.ts';
import { Vae } from './vae.ts';

const MINI = join(import.meta.dirname, '../../../../models/mini');
/** Latents: their attention is in two chunks of unequal length, and neither side is a multiple of a tile. */
const SIZE = { height: 33, width: 35 };
const TILING = { above: 16, tile: 14 };

let spec: VaeSpec;
let locator: WeightLocator;
let whole: Vae;
let tiled: Vae;
beforeAll(async () => {
  const opened = await openModel({
    transformer: join(MINI, 'transformer.safetensors'),
    vae: join(MINI, 'ae.safetensors'),
    textEncoder: join(MINI, 'text_encoder'),
    textEncoder2: join(MINI, 'text_encoder_2'),
    tokenizer: join(MINI, 'tokenizer'),
    tokenizer2: join(MINI, 'tokenizer_2'),
    scheduler: join(MINI, 'scheduler'),
  });
  const { weights } = opened.vae;
  spec = opened.vae.spec;
  locator = { has: (name) => weights.has(name), locate: (name) => weights.get(name) };
  whole = await Vae.load(spec, locator, {});
  tiled = await Vae.load(spec, locator, { tiling: TILING });
});
afterAll(async () => {
  await whole.release();
  await tiled.release();
});

/** A red disc before a sky that fades: [3, height, width] in -1..1. */
function scene(height: number, width: number): Float32Array {
  const sky = [-0.6, -0.1, 0.5];
  return Float32Array.from({ length: 3 * height * width }, (_, i) => {
    const [c, y, x] = [Math.floor(i / (height * width)), Math.floor(i / width) % height, i % width];
    const inside = Math.hypot(y - height * 0.4, x - width * 0.35) < height * 0.25;
    return inside ? (c === 0 ? 0.8 : -0.7) : sky[c]! + 0.4 * (y / height);
  });
}

function difference(a: Float32Array, b: Float32Array): { max: number; mean: number } {
  expect(a).toHaveLength(b.length);
  const each = a.map((value, i) => Math.abs(value - b[i]!));
  return {
    max: each.reduce((most, value) => Math.max(most, value), 0),
    mean: each.reduce((sum, value) => sum + value, 0) / each.length,
  };
}

async function latentsOf(vae: Vae, { height, width } = SIZE): Promise<Float32Array> {
  const [rows, columns] = [height * spec.scaleFactor, width * spec.scaleFactor];
  const sample = new Float32Array(spec.latentChannels * height * width);
  return vae.encode(scene(rows, columns), rows, columns, sample);
}

test('a picture decoded in tiles is the picture', async () => {
  const latents = await latentsOf(whole);
  const expected = await whole.decode(latents, SIZE.height, SIZE.width);
  const found = await tiled.decode(latents, SIZE.height, SIZE.width);
  const { max, mean } = difference(found, expected);
  // Of 255 values. With the statistics of each tile alone it is 16.0 and 2.13.
  expect(max * 127.5).toBeLessThan(1);
  expect(mean * 127.5).toBeLessThan(0.3);
});

test('latents of a picture encoded in tiles are its latents', async () => {
  const expected = await latentsOf(whole);
  const rms = Math.sqrt(expected.reduce((sum, value) => sum + value ** 2, 0) / expected.length);
  const { max, mean } = difference(await latentsOf(tiled), expected);
  // With the statistics of each tile alone: 0.300 and 0.047.
  expect(max / rms).toBeLessThan(0.01);
  expect(mean / rms).toBeLessThan(0.002);
});

test.each([
  { height: 16, width: 16 },
  { height: 6, width: 10 },
])('$height x $width is not above the limit and is done in one piece', async (size) => {
  const latents = await latentsOf(whole, size);
  expect(await latentsOf(tiled, size)).toEqual(latents);
  expect(await tiled.decode(latents, size.height, size.width)).toEqual(
    await whole.decode(latents, size.height, size.width),
  );
});

test('a strip that is narrower than a tile gets tiles of its width', async () => {
  const size = { height: 4, width: 40 };
  const image = await tiled.decode(await latentsOf(tiled, size), size.height, size.width);
  expect(image).toHaveLength(3 * size.height * size.width * spec.scaleFactor ** 2);
  expect(image.every(Number.isFinite)).toBe(true);
});

test('a tiling that covers nothing is refused', async () => {
  const refused = Vae.load(spec, locator, { tiling: { above: 16, tile: 0 } });
  await expect(refused).rejects.toMatchObject({ code: 'request_invalid' });
});
