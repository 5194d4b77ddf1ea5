import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { EngineProcess } from '@atelier/flux';
import sharp from 'sharp';

/*
 * node bench/follow-sheet.ts OUT.png: the 64 prompts of models/mini/train/follow_prompts.json, seeds 0 to 3, drawn by
 * this engine on one sheet for models/mini/train/follow.py: 16 x 16 tiles, prompt p with seed s at tile 4p + s.
 */

const SIZE = 128;
const SEEDS = 4;
const COLUMNS = 16;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    steps: { type: 'string', default: '20' },
    guidance: { type: 'string', default: '3' },
    threads: { type: 'string', default: '2' },
  },
});
const [out] = positionals;
if (!out)
  throw new Error('usage: node bench/follow-sheet.ts OUT.png [--steps 20] [--guidance 3] [--threads 2]');

const model = join(import.meta.dirname, '../models/mini');
const files = {
  transformer: join(model, 'transformer.safetensors'),
  vae: join(model, 'ae.safetensors'),
  textEncoder: join(model, 'text_encoder'),
  textEncoder2: join(model, 'text_encoder_2'),
  tokenizer: join(model, 'tokenizer'),
  tokenizer2: join(model, 'tokenizer_2'),
  scheduler: join(model, 'scheduler'),
};
const list = await readFile(join(model, 'train/follow_prompts.json'), 'utf8');
const prompts = (JSON.parse(list) as { prompt: string }[]).map(({ prompt }) => prompt);
const side = COLUMNS * SIZE;
const sheet = Buffer.alloc(side * side * 3, 255);
const cacheDir = await mkdtemp(join(tmpdir(), 'atelier-follow-'));
const engine = EngineProcess.spawn();
try {
  const threads = Number(values.threads);
  await engine.load({ name: 'mini', files, cacheDir, maxSequenceLength: 32, threads });
  for (const [row, prompt] of prompts.entries()) {
    for (let seed = 0; seed < SEEDS; seed++) {
      const { pixels } = await engine.generate({
        prompt,
        width: SIZE,
        height: SIZE,
        steps: Number(values.steps),
        guidance: Number(values.guidance),
        seed,
      });
      place(pixels, row * SEEDS + seed);
    }
    console.log(prompt);
  }
} finally {
  await engine.close();
  await rm(cacheDir, { recursive: true });
}
await sharp(sheet, { raw: { width: side, height: side, channels: 3 } })
  .png()
  .toFile(out);

/** Copies one RGB8 picture to its tile. */
function place(pixels: Uint8Array, tile: number): void {
  const left = (tile % COLUMNS) * SIZE;
  const top = Math.floor(tile / COLUMNS) * SIZE;
  for (let y = 0; y < SIZE; y++) {
    sheet.set(pixels.subarray(y * SIZE * 3, (y + 1) * SIZE * 3), ((top + y) * side + left) * 3);
  }
}
