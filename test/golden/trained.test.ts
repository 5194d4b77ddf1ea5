import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { bundledModel } from '../../bench/bundled-model.ts';
import { EngineProcess } from '../../packages/flux/src/runtime/engine-process.ts';
import { FIXTURES, maxAbsError } from './support.ts';

interface Case {
  prompt: string;
  seed: number;
  steps: number;
  guidance: number;
  width: number;
  height: number;
  weight: number;
  file: string;
}

const FOLDER = join(FIXTURES, 'trained');
/** Bytes by which a pixel may differ from diffusers' picture of the same weights, LoRA, seed and steps. */
const TOLERANCE = 2;
/** Mean difference in bytes from the picture without the LoRA, which it has to be far beyond. */
const MOVED = 20;

test('a LoRA that was trained here draws in diffusers what it draws here, and not what the base draws', async () => {
  const cases = JSON.parse(await readFile(join(FOLDER, 'cases.json'), 'utf8')) as Case[];
  expect(cases).toHaveLength(3);
  const cacheDir = await mkdtemp(join(tmpdir(), 'atelier-trained-'));
  const engine = EngineProcess.spawn();
  try {
    await engine.load({ name: 'mini', files: bundledModel(), cacheDir, maxSequenceLength: 32 });
    for (const { file, weight, ...request } of cases) {
      const styles = [{ file: join(FOLDER, 'lora.safetensors'), key: 'trained', weight }];
      const { pixels } = await engine.generate({ ...request, styles });
      const expected = await sharp(join(FOLDER, file)).removeAlpha().raw().toBuffer();
      const { pixels: base } = await engine.generate(request);
      expect(pixels).toHaveLength(expected.length);
      const moved = expected.reduce((sum, value, i) => sum + Math.abs(value - base[i]!), 0) / expected.length;
      const { prompt } = request;
      expect({
        prompt,
        close: maxAbsError(pixels, expected) <= TOLERANCE,
        moved: moved > MOVED,
      }).toEqual({ prompt, close: true, moved: true });
    }
  } finally {
    await engine.close();
    await rm(cacheDir, { recursive: true });
  }
}, 120_000);
