import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openModel } from '../../packages/flux/src/checkpoint/model-files.ts';
import {
  openSafetensors,
  readTensor,
  type SafetensorsFile,
} from '../../packages/flux/src/checkpoint/safetensors.ts';
import { placeModel } from '../../packages/flux/src/runtime/placement.ts';
import { addNoise } from '../../packages/flux/src/sampling/latents.ts';
import { ADAMW_DEFAULTS, adamwStep, clipGradients } from '../../packages/flux/src/training/adamw.ts';
import { DeviceGradients } from '../../packages/flux/src/training/device-gradients.ts';
import {
  type Gradients,
  LoraGradients,
  type TrainingSample,
} from '../../packages/flux/src/training/gradients.ts';
import { type TrainedModule, trainedModule } from '../../packages/flux/src/training/parameters.ts';
import { targetModules } from '../../packages/flux/src/training/targets.ts';
import { FIXTURES, maxAbsError, rms, tinyModel } from './support.ts';

interface Run {
  losses: number[];
  grad_norms: number[];
}

interface TrainingCase {
  name: string;
  checkpoint: string;
  modules: string[];
  max_grad_norm: number;
  /** Per sample, at the start. */
  losses: number[];
  grad_norm: number;
  runs: Record<string, Run>;
}

const FOLDER = join(FIXTURES, 'training');
const json = JSON.parse(readFileSync(join(FOLDER, 'training.json'), 'utf8')) as {
  settings: { rank: number; alpha: number; learning_rate: number; guidance: number };
  samples: { rows: number; columns: number; sigma: number }[];
  cases: TrainingCase[];
};
const { rank, alpha, learning_rate: learningRate, guidance } = json.settings;

/** Largest error of a gradient relative to its rms: sums of fp32 products in another order. */
const RELATIVE = 1e-4;

let file: SafetensorsFile;
let cacheDir: string;
beforeAll(async () => {
  file = await openSafetensors(join(FOLDER, 'training.safetensors'));
  cacheDir = await mkdtemp(join(tmpdir(), 'atelier-training-'));
});
afterAll(() => rm(cacheDir, { recursive: true }));

async function golden(name: string): Promise<Float32Array> {
  const info = file.tensors.get(name);
  if (!info) throw new Error(`no golden ${name}`);
  const bytes = await readTensor(info);
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}

async function samples(): Promise<TrainingSample[]> {
  return Promise.all(
    json.samples.map(async ({ rows, columns, sigma }, i) => {
      const [latents, noise] = [await golden(`samples/${i}/latents`), await golden(`samples/${i}/noise`)];
      return {
        noisy: addNoise(latents, noise, Math.fround(sigma)),
        target: noise.map((value, j) => value - latents[j]!),
        sigma,
        guidance,
        text: await golden(`samples/${i}/text`),
        pooled: await golden(`samples/${i}/pooled`),
        grid: { height: rows, width: columns },
      };
    }),
  );
}

/** The graphs for the processor and the one for a device, which computes the same there when it computes in fp32. */
const GRAPHS = ['block by block', 'whole token path'] as const;

async function setUp(
  { name, checkpoint, modules }: TrainingCase,
  zeroUp: boolean,
  graphs: (typeof GRAPHS)[number],
) {
  const { files } = await tinyModel('tiny-dev');
  const opened = await openModel({ ...files, transformer: join(FIXTURES, checkpoint) });
  const placed = await placeModel(opened, { cacheDir, placement: 'expand' });
  const spec = { transformer: opened.transformer.spec, clip: opened.clip.spec };
  const targets = targetModules(spec, name.endsWith('/all') ? 'all' : 'attention');
  expect(targets.map(({ module }) => module).sort()).toEqual([...modules].sort());
  const trained: TrainedModule[] = [];
  for (const target of targets) {
    const down = await golden(`${name}/start/${target.module}.down`);
    const up = await golden(`${name}/start/${target.module}.up`);
    trained.push(trainedModule(target, rank, alpha / rank, down, zeroUp ? up.fill(0) : up));
  }
  const transformer = opened.transformer.spec;
  const gradients: Gradients =
    graphs === 'block by block'
      ? await LoraGradients.load(transformer, placed.transformer, trained, {})
      : await DeviceGradients.load(transformer, placed.transformer, trained, 'float32', {});
  return { trained, gradients };
}

/** Gradients of the mean loss of all samples; returns the loss of each. */
async function accumulate(gradients: Gradients, trained: TrainedModule[], all: TrainingSample[]) {
  for (const { downGradient, upGradient } of trained) {
    downGradient.fill(0);
    upGradient.fill(0);
  }
  const losses: number[] = [];
  await gradients.prepare(all);
  for (const sample of all) losses.push(await gradients.loss(sample, 1 / all.length));
  return losses;
}

const gradientsOf = (trained: TrainedModule[]): Float32Array[] =>
  trained.flatMap(({ downGradient, upGradient }) => [downGradient, upGradient]);

describe.each(json.cases.map((one) => [one.name, one] as const))('%s', (name, training) => {
  test.each(GRAPHS)('%s: losses and gradients at the start are those of PyTorch and PEFT', async (graphs) => {
    const { trained, gradients } = await setUp(training, false, graphs);
    const losses = await accumulate(gradients, trained, await samples());
    losses.forEach((loss, i) => expect(loss).toBeCloseTo(training.losses[i]!, 4));
    for (const { module, downGradient, upGradient } of trained) {
      for (const [side, found] of [
        ['down', downGradient],
        ['up', upGradient],
      ] as const) {
        const expected = await golden(`${name}/grad/${module}.${side}`);
        const relative = maxAbsError(found, expected) / rms(expected);
        expect({ module, side, close: relative < RELATIVE }).toEqual({ module, side, close: true });
      }
    }
    expect(clipGradients(gradientsOf(trained), Infinity) / training.grad_norm).toBeCloseTo(1, 4);
    await gradients.release();
  });

  test.each(Object.entries(training.runs))(
    'ten steps of AdamW with accumulation and clipping (%s)',
    async (run, expected) => {
      const { trained, gradients } = await setUp(training, run === 'zero_up', 'block by block');
      const all = await samples();
      for (const [step, loss] of expected.losses.entries()) {
        const losses = await accumulate(gradients, trained, all);
        expect(losses.reduce((sum, one) => sum + one, 0) / losses.length).toBeCloseTo(loss, 3);
        const norm = clipGradients(gradientsOf(trained), training.max_grad_norm);
        expect(norm / expected.grad_norms[step]!).toBeCloseTo(1, 3);
        for (const { down, up, downGradient, upGradient, moments } of trained) {
          adamwStep(down, downGradient, moments.down, step + 1, learningRate, ADAMW_DEFAULTS);
          adamwStep(up, upGradient, moments.up, step + 1, learningRate, ADAMW_DEFAULTS);
        }
      }
      for (const { module, down, up } of trained) {
        for (const [side, found] of [
          ['down', down],
          ['up', up],
        ] as const) {
          const end = await golden(`${name}/final/${run}/${module}.${side}`);
          // Without clipping these differ by 2e-4 and more, so the bound has to be below that.
          const squares = end.reduce((sum, value, at) => sum + (found[at]! - value) ** 2, 0);
          const error = Math.sqrt(squares / end.length) / rms(end);
          expect({ module, side, close: error < 5e-5 }).toEqual({ module, side, close: true });
        }
      }
      await gradients.release();
    },
  );
});
