import { cp, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openModel } from '../../packages/flux/src/checkpoint/model-files.ts';
import { placeModel } from '../../packages/flux/src/runtime/placement.ts';
import { TextEncoder } from '../../packages/flux/src/text/encoder.ts';
import { modelEncoders } from '../../packages/flux/src/training/data/encoders.ts';
import { fitImage } from '../../packages/flux/src/training/data/image.ts';
import { prepareItems } from '../../packages/flux/src/training/data/items.ts';
import { toRgb8 } from '../../packages/flux/src/vae/pixels.ts';
import { Vae } from '../../packages/flux/src/vae/vae.ts';

const ROOT = join(import.meta.dirname, '..', '..');
const MODEL = join(ROOT, 'models', 'mini');
const INK_WASH = join(ROOT, 'examples', 'ink-wash');
const STEMS = ['001', '021', '121'];

let work: string;
beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'atelier-training-data-'));
});
afterAll(() => rm(work, { recursive: true, force: true }));

test('pictures of the sample dataset go through the encoder of the bundled model and come back', async () => {
  const files = {
    transformer: join(MODEL, 'transformer.safetensors'),
    vae: join(MODEL, 'ae.safetensors'),
    textEncoder: join(MODEL, 'text_encoder'),
    textEncoder2: join(MODEL, 'text_encoder_2'),
    tokenizer: join(MODEL, 'tokenizer'),
    tokenizer2: join(MODEL, 'tokenizer_2'),
    scheduler: join(MODEL, 'scheduler'),
  };
  const { max_sequence_length: maxSequenceLength } = JSON.parse(
    await readFile(join(MODEL, 'model_index.json'), 'utf8'),
  ) as { max_sequence_length: number };
  const opened = await openModel(files);
  const placed = await placeModel(opened, { cacheDir: join(work, 'weights') });
  const vae = await Vae.load(opened.vae.spec, placed.vae, {});
  const text = await TextEncoder.load(
    {
      clip: { spec: opened.clip.spec, locator: placed.clip, tokenizer: files.tokenizer },
      t5: { spec: opened.t5.spec, locator: placed.t5, tokenizer: files.tokenizer2 },
      maxSequenceLength,
    },
    {},
  );
  const dataset = join(work, 'dataset');
  for (const stem of STEMS)
    for (const name of [`images/${stem}.png`, `prompts/${stem}.txt`])
      await cp(join(INK_WASH, name), join(dataset, name));

  const { items, empty } = await prepareItems(dataset, {
    resolution: 256,
    multiple: 16,
    cacheDir: join(work, 'encodings'),
    modelKey: 'mini',
    encoders: modelEncoders(vae, text),
  });
  expect(items.map(({ stem }) => stem)).toEqual(STEMS);
  const { scalingFactor, shiftFactor, latentChannels, scaleFactor } = vae.spec;
  for (const item of items) {
    const side = 256 / scaleFactor;
    expect(item.latent).toEqual({ channels: latentChannels, height: side, width: side });
    const latents = item.mean.map((mean) => (mean - shiftFactor) * scalingFactor);
    const decoded = toRgb8(await vae.decode(latents, side, side), 256, 256);
    const original = await fitImage(await readFile(join(dataset, `images/${item.stem}.png`)), item.bucket);
    expect(psnr(decoded, original)).toBeGreaterThan(25);
    expect(item.logVariance.every((value) => value >= -30 && value <= 20)).toBe(true);
    expect(await text.encode(item.caption)).toEqual({ text: item.text, pooled: item.pooled });
  }
  expect(await text.encode('')).toEqual(empty);
  await vae.release();
  await text.release();
});

/** Peak signal-to-noise ratio of two pictures of bytes, in dB. */
function psnr(a: Uint8Array, b: Uint8Array): number {
  const squares = a.reduce((sum, value, i) => sum + (value - b[i]!) ** 2, 0);
  return 10 * Math.log10(255 ** 2 / (squares / a.length));
}
