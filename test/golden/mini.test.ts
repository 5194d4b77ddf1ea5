import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { EngineProcess } from '../../packages/flux/src/runtime/engine-process.ts';
import { FIXTURES, maxAbsError } from './support.ts';

interface Case {
  prompt: string;
  seed: number;
  steps: number;
  guidance: number;
  width: number;
  height: number;
  file: string;
}

const MODEL = join(import.meta.dirname, '..', '..', 'models', 'mini');

/** Bytes by which a pixel may differ from diffusers' picture of the same weights, seed and steps. */
const TOLERANCE = 2;

test('the bundled model draws the pictures that diffusers draws', async () => {
  const cases = JSON.parse(await readFile(join(FIXTURES, 'mini', 'cases.json'), 'utf8')) as Case[];
  expect(cases).toHaveLength(8);
  const { max_sequence_length: maxSequenceLength } = JSON.parse(
    await readFile(join(MODEL, 'model_index.json'), 'utf8'),
  ) as { max_sequence_length: number };
  const cacheDir = await mkdtemp(join(tmpdir(), 'atelier-mini-'));
  const engine = EngineProcess.spawn();
  try {
    await engine.load({
      name: 'mini',
      files: {
        transformer: join(MODEL, 'transformer.safetensors'),
        vae: join(MODEL, 'ae.safetensors'),
        textEncoder: join(MODEL, 'text_encoder'),
        textEncoder2: join(MODEL, 'text_encoder_2'),
        tokenizer: join(MODEL, 'tokenizer'),
        tokenizer2: join(MODEL, 'tokenizer_2'),
        scheduler: join(MODEL, 'scheduler'),
      },
      cacheDir,
      maxSequenceLength,
    });
    for (const { file, ...request } of cases) {
      const { pixels } = await engine.generate(request);
      const expected = await sharp(join(FIXTURES, 'mini', file))
        .removeAlpha()
        .raw()
        .toBuffer();
      const difference = maxAbsError(pixels, expected);
      expect({ prompt: request.prompt, close: difference <= TOLERANCE }).toEqual({
        prompt: request.prompt,
        close: true,
      });
    }
  } finally {
    await engine.close();
    await rm(cacheDir, { recursive: true });
  }
}, 120_000);
