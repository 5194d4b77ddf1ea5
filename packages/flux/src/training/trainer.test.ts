import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openTiny } from '../../../../test/golden/support.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { loadCheckpoint, saveCheckpoint } from './checkpoint.ts';
import { DeviceGradients } from './device-gradients.ts';
import { type Gradients, LoraGradients } from './gradients.ts';
import type { LossScale } from './loss-scale.ts';
import { minSnrWeight } from './loss-weight.ts';
import { TRAINING_DEFAULTS, type TrainingOptions } from './options.ts';
import { initialModules, type TrainedModule } from './parameters.ts';
import { shuffled, stream } from './streams.ts';
import { targetModules } from './targets.ts';
import { sampleSigma } from './timesteps.ts';
import { Trainer, type TrainerState, type TrainingItem } from './trainer.ts';

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

type Compute = 'host' | 'float32' | 'float16';

async function setUp(
  options: TrainingOptions,
  from?: string,
  lossScale?: LossScale,
  compute: Compute = 'host',
) {
  const { opened, locator, maxSequenceLength } = await openTiny('tiny-dev');
  const { spec } = opened.transformer;
  const targets = targetModules({ transformer: spec, clip: opened.clip.spec }, options.targets);
  let state: TrainerState | undefined;
  let modules: TrainedModule[] = initialModules(targets, options.loraRank, options.loraAlpha, options.seed);
  if (from) ({ state, modules } = await loadCheckpoint(from, options, targets));
  if (lossScale) state = { position: { step: 0, epoch: 0, stepInEpoch: 0 }, lossScale };
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
  const weights = locator('transformer');
  const gradients: Gradients =
    compute === 'host'
      ? await LoraGradients.load(spec, weights, modules, {})
      : await DeviceGradients.load(spec, weights, modules, compute, {});
  const parts = {
    gradients,
    modules,
    items,
    empty: encoded(),
    scheduler: opened.scheduler,
    vae: opened.vae.spec,
  };
  return { trainer: new Trainer(parts, options, state), modules, items, gradients };
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
  await saveCheckpoint(folder, { ...first.trainer.state, options: OPTIONS }, first.modules);
  const second = await setUp(OPTIONS, folder);
  expect(second.trainer.position).toEqual({ step: 4, epoch: 1, stepInEpoch: 1 });
  while (!second.trainer.isDone) await second.trainer.step();
  expect(bits(second.modules)).toEqual(bits(straight.modules));

  const other = { ...OPTIONS, learningRate: 1 };
  await expect(setUp(other, folder)).rejects.toMatchObject({ code: 'request_invalid' });
  for (const { gradients } of [straight, first, second]) await gradients.release();
});

test('the same holds on a device in fp16, where conditions are prepared for many steps at once', async () => {
  const options: TrainingOptions = { ...OPTIONS, lossScaling: 'dynamic', guidance: 2 };
  const onDevice = (from?: string) => setUp(options, from, undefined, 'float16');
  const [straight, host] = [await onDevice(), await setUp(options)];
  const validation = straight.items.slice(0, 2);
  let folder = '';
  while (!straight.trainer.isDone) {
    const [report, expected] = [await straight.trainer.step(), await host.trainer.step()];
    expect(report.skipped).toBe(false);
    expect(report.loss / expected.loss).toBeCloseTo(1, 2);
    expect(report.gradientNorm / expected.gradientNorm).toBeCloseTo(1, 1);
    if (report.position.step !== 4) continue;
    folder = join(dir, 'device');
    await saveCheckpoint(folder, { ...straight.trainer.state, options }, straight.modules);
    // The conditions of the coming steps give way to those of the validation.
    const losses = [await straight.trainer.validate(validation), await host.trainer.validate(validation)];
    expect(losses[0]! / losses[1]!).toBeCloseTo(1, 2);
  }
  const second = await onDevice(folder);
  while (!second.trainer.isDone) await second.trainer.step();
  expect(bits(second.modules)).toEqual(bits(straight.modules));
  for (const { gradients } of [straight, host, second]) await gradients.release();
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

test('Min-SNR scales the gradients of a picture by its weight', async () => {
  const options: TrainingOptions = { ...OPTIONS, batchSize: 1, maxGradNorm: 0 };
  const plain = await setUp(options);
  const weighted = await setUp({ ...options, minSnrGamma: 5 });
  const [before, after] = [await plain.trainer.step(), await weighted.trainer.step()];
  const { opened } = await openTiny('tiny-dev');
  const tokens = (index: number): number => {
    const { height, width } = plain.items[index]!.latent;
    return (height * width) / 4;
  };
  const [first] = shuffled(plain.items.length, stream(options.seed, 'order', 0));
  const sigma = sampleSigma(
    stream(options.seed, 'sample', 0, 0),
    options.timestepSampling,
    opened.scheduler,
    tokens(first!),
  );
  const weight = minSnrWeight(sigma, 5);
  expect(weight).toBeGreaterThan(0.01);
  expect(after.loss).toBeCloseTo(before.loss * weight, 6);
  expect(after.gradientNorm / before.gradientNorm).toBeCloseTo(weight, 5);
  const [gradient, scaled] = [plain, weighted].map(({ modules }) => modules[3]!.upGradient);
  const largest = gradient!.reduce(
    (best, value, i) => (Math.abs(value) > Math.abs(gradient![best]!) ? i : best),
    0,
  );
  expect(scaled![largest]! / gradient![largest]!).toBeCloseTo(weight, 4);
  for (const { gradients } of [plain, weighted]) await gradients.release();
});

test('steps whose scaled gradients overflow are skipped, as if the optimizer had not been there; that survives a checkpoint', async () => {
  const options: TrainingOptions = { ...OPTIONS, lossScaling: 'dynamic', captionDropout: 0, maxEpochs: 40 };
  const scale = 2 ** 140;
  const run = await setUp(options, undefined, { scale, goodSteps: 3, skipped: 0 });
  const initial = bits(run.modules);
  let skipped = 0;
  let report = await run.trainer.step();
  for (; report.skipped; report = await run.trainer.step()) {
    skipped++;
    expect(report.gradientNorm).not.toBeLessThan(Infinity);
    expect(report.loss).toBeGreaterThan(0);
    expect(bits(run.modules)).toEqual(initial);
    expect(run.trainer.state.lossScale).toEqual({ scale: scale / 2 ** skipped, goodSteps: 0, skipped });
  }
  expect(skipped).toBeGreaterThan(5);
  expect(report.gradientNorm).toBeGreaterThan(0);
  // Adam's first update has the size of the learning rate, which it has with the bias correction of a first step only.
  const up = run.modules.flatMap((module) => [...module.up]);
  expect(Math.max(...up.map(Math.abs)) / report.learningRate).toBeCloseTo(1, 3);
  expect(run.trainer.state).toMatchObject({
    position: { step: skipped + 1 },
    lossScale: { scale: scale / 2 ** skipped, goodSteps: 1, skipped },
  });

  const folder = join(dir, 'scaled');
  await saveCheckpoint(folder, { ...run.trainer.state, options }, run.modules);
  const resumed = await setUp(options, folder);
  expect(resumed.trainer.state).toEqual(run.trainer.state);
  for (let i = 0; i < 3; i++) {
    await run.trainer.step();
    await resumed.trainer.step();
  }
  expect(bits(resumed.modules)).toEqual(bits(run.modules));
  expect(bits(run.modules)).not.toEqual(initial);
  for (const { gradients } of [run, resumed]) await gradients.release();
});

test('a loss scale that fits changes nothing, as it is a power of two', async () => {
  const [plain, scaled] = [await setUp(OPTIONS), await setUp({ ...OPTIONS, lossScaling: 'dynamic' })];
  while (!plain.trainer.isDone) {
    const report = await plain.trainer.step();
    expect(await scaled.trainer.step()).toEqual(report);
  }
  expect(bits(scaled.modules)).toEqual(bits(plain.modules));
  expect(scaled.trainer.state.lossScale).toEqual({ scale: 2 ** 16, goodSteps: 9, skipped: 0 });
  for (const { gradients } of [plain, scaled]) await gradients.release();
});
