import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openTiny } from '../../../../test/golden/support.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { loadCheckpoint, saveCheckpoint } from './checkpoint.ts';
import { LoraGradients } from './gradients.ts';
import { TRAINING_DEFAULTS, type TrainingOptions, type TrainingPosition } from './options.ts';
import { initialModules, type TrainedModule } from './parameters.ts';
import { targetModules } from './targets.ts';
import { Trainer, type TrainingItem } from './trainer.ts';

const OPTIONS: TrainingOptions = {
  ...TRAINING_DEFAULTS,
  batchSize: 2,
  gradientAccumulationSteps: 1,
  maxEpochs: 3,
  learningRate: 5e-3,
  captionDropout: 0.3,
  lrSchedule: 'cosine',
  lrWarmupSteps: 1,
};

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-trainer-'));
});
afterAll(() => rm(dir, { recursive: true }));

async function setUp(options: TrainingOptions, from?: string) {
  const { opened, locator, maxSequenceLength } = await openTiny('tiny-dev');
  const { spec } = opened.transformer;
  const targets = targetModules({ transformer: spec, clip: opened.clip.spec }, options.targets);
  let position: TrainingPosition | undefined;
  let modules: TrainedModule[] = initialModules(targets, options.loraRank, options.loraAlpha, options.seed);
  if (from) ({ position, modules } = await loadCheckpoint(from, options, targets));
  const generator = new TorchGenerator(7);
  const encoded = () => ({
    text: generator.randn(maxSequenceLength * spec.jointDim),
    pooled: generator.randn(spec.pooledDim),
  });
  const { latentChannels: channels } = opened.vae.spec;
  const sizes = [
    [8, 6],
    [6, 8],
    [4, 4],
    [8, 8],
    [6, 6],
  ] as const;
  const items = sizes.map(([height, width]): TrainingItem => {
    const count = channels * height * width;
    return {
      latent: { channels, height, width },
      mean: generator.randn(count),
      logVariance: new Float32Array(count).fill(-4),
      ...encoded(),
    };
  });
  const gradients = await LoraGradients.load(spec, locator('transformer'), modules, {});
  const parts = {
    gradients,
    modules,
    items,
    empty: encoded(),
    scheduler: opened.scheduler,
    vae: opened.vae.spec,
  };
  return { trainer: new Trainer(parts, options, position), modules, items, gradients };
}

const bits = (modules: readonly TrainedModule[]): string[] =>
  modules.flatMap(({ down, up }) =>
    [down, up].map((values) => Buffer.from(values.buffer).toString('base64')),
  );

test('a training that goes on from a checkpoint, in the middle of an epoch, ends with the same bits', async () => {
  const straight = await setUp(OPTIONS);
  expect(straight.trainer.steps).toBe(9);
  while (!straight.trainer.isDone) await straight.trainer.step();

  const first = await setUp(OPTIONS);
  for (let i = 0; i < 4; i++) await first.trainer.step();
  const folder = join(dir, 'checkpoint');
  await saveCheckpoint(folder, { position: first.trainer.position, options: OPTIONS }, first.modules);
  const second = await setUp(OPTIONS, folder);
  expect(second.trainer.position).toEqual({ step: 4, epoch: 1, stepInEpoch: 1 });
  while (!second.trainer.isDone) await second.trainer.step();
  expect(bits(second.modules)).toEqual(bits(straight.modules));

  const other = { ...OPTIONS, learningRate: 1 };
  await expect(setUp(other, folder)).rejects.toMatchObject({ code: 'request_invalid' });
  for (const { gradients } of [straight, first, second]) await gradients.release();
});

test('training lowers the loss of what it is trained on, and the loss at fixed noise does not wander', async () => {
  const options: TrainingOptions = { ...OPTIONS, maxEpochs: 12, captionDropout: 0, lrSchedule: 'constant' };
  const { trainer, items, gradients, modules } = await setUp(options);
  const before = await trainer.validate(items);
  expect(await trainer.validate(items)).toBe(before);
  const report = await trainer.step();
  expect(report).toMatchObject({
    position: { step: 1, epoch: 0, stepInEpoch: 1 },
    learningRate: 0,
    steps: 36,
  });
  expect(report.gradientNorm).toBeGreaterThan(0);
  // The learning rate of the first step is 0, by the warm-up.
  expect(modules.every(({ up }) => up.every((value) => value === 0))).toBe(true);
  while (!trainer.isDone) await trainer.step();
  expect(await trainer.validate(items)).toBeLessThan(before * 0.9);
  await gradients.release();
});
