import { stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { SchedulerSpec } from '../../packages/flux/src/checkpoint/spec.ts';
import { openWeights } from '../../packages/flux/src/checkpoint/weights.ts';
import type { WeightLocator } from '../../packages/flux/src/graph/weights.ts';
import type { Provider } from '../../packages/flux/src/runtime/session.ts';
import { TorchGenerator } from '../../packages/flux/src/sampling/random.ts';
import { DeviceGradients } from '../../packages/flux/src/training/device-gradients.ts';
import type { Gradients } from '../../packages/flux/src/training/gradients.ts';
import { TRAINING_DEFAULTS, type TrainingOptions } from '../../packages/flux/src/training/options.ts';
import { initialModules } from '../../packages/flux/src/training/parameters.ts';
import { targetModules, type TrainingTargets } from '../../packages/flux/src/training/targets.ts';
import { Trainer, type TrainingItem } from '../../packages/flux/src/training/trainer.ts';
import { median } from '../statistics.ts';
import { DeviceMemory, holdMemory } from './device-memory.ts';
import { CLIP_L, FLUX_DEV, writeRandomTransformer } from './random-flux.ts';

/*
 * node bench/gpu/training.ts: optimizer steps of a LoRA on FLUX.1-dev's architecture with random fp8 weights and
 * random encodings; training_peer.py is the same in PyTorch with peft. Writes 12 GB into --model once. With --free-gib
 * another process (--python, with torch) holds the rest of the card's memory. Dry run: --provider cpu --blocks 1,1
 * --resolution 64 --text 32.
 */

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: join(tmpdir(), 'atelier-flux-random') },
    blocks: { type: 'string', default: `${FLUX_DEV.doubleBlocks},${FLUX_DEV.singleBlocks}` },
    resolution: { type: 'string', default: '768' },
    text: { type: 'string', default: '512' },
    batch: { type: 'string', default: '1' },
    accumulation: { type: 'string', default: '1' },
    steps: { type: 'string', default: '3' },
    rank: { type: 'string', default: '4' },
    targets: { type: 'string', default: 'attention' },
    provider: { type: 'string', default: 'cuda' },
    compute: { type: 'string', default: 'float16' },
    'free-gib': { type: 'string' },
    python: { type: 'string', default: 'python3' },
  },
});
const [resolution, text, batchSize, accumulation, steps, rank] = [
  values.resolution,
  values.text,
  values.batch,
  values.accumulation,
  values.steps,
  values.rank,
].map(Number) as [number, number, number, number, number, number];
const [doubleBlocks, singleBlocks] = values.blocks.split(',').map(Number) as [number, number];
const spec = { ...FLUX_DEV, doubleBlocks, singleBlocks };
const options: TrainingOptions = {
  ...TRAINING_DEFAULTS,
  loraRank: rank,
  loraAlpha: 2 * rank,
  targets: values.targets as TrainingTargets,
  batchSize,
  gradientAccumulationSteps: accumulation,
  maxEpochs: 1,
  ...(values.compute === 'float16' ? { lossScaling: 'dynamic' } : {}),
};

/** Times what a training asks of the gradients. */
class Stopwatch implements Gradients {
  readonly #inner: Gradients;
  prepareMs = 0;
  readonly lossMs: number[] = [];

  constructor(inner: Gradients) {
    this.#inner = inner;
  }

  async loss(...args: Parameters<Gradients['loss']>): Promise<number> {
    const began = performance.now();
    const loss = await this.#inner.loss(...args);
    this.lossMs.push(performance.now() - began);
    return loss;
  }

  async prepare(...args: Parameters<Gradients['prepare']>): Promise<void> {
    const began = performance.now();
    await this.#inner.prepare(...args);
    this.prepareMs += performance.now() - began;
  }

  release(): Promise<void> {
    return this.#inner.release();
  }
}

const file = await transformerFile();
const free = values['free-gib'];
const ballast = free === undefined ? null : await holdMemory(Number(free), values.python);
const memory = await DeviceMemory.watch();
try {
  await measure();
} finally {
  memory.stop();
  ballast?.stop();
}

async function measure(): Promise<void> {
  const started = performance.now();
  const source = await openWeights(file, 'transformer');
  const weights: WeightLocator = { has: (name) => source.has(name), locate: (name) => source.get(name) };
  const targets = targetModules({ transformer: spec, clip: CLIP_L }, options.targets);
  const modules = initialModules(targets, rank, options.loraAlpha, options.seed);
  const compute = values.compute === 'float16' ? 'float16' : 'float32';
  const provider = values.provider as Provider;
  const gradients = await DeviceGradients.load(spec, weights, modules, compute, { provider });
  const loadMs = performance.now() - started;
  const loadGb = memory.takePeak();
  console.log(`loaded in ${seconds(loadMs)} s, ${loadGb.toFixed(2)} GB`);

  const watched = new Stopwatch(gradients);
  const items = randomItems(batchSize * accumulation * (steps + 1));
  const scheduler: SchedulerSpec = {
    useDynamicShifting: true,
    shift: 3,
    baseShift: 0.5,
    maxShift: 1.15,
    baseImageSeqLen: 256,
    maxImageSeqLen: 4096,
  };
  const vae = { scalingFactor: 0.3611, shiftFactor: 0.1159 };
  const [empty] = items as [TrainingItem];
  const trainer = new Trainer({ gradients: watched, modules, items, empty, scheduler, vae }, options);
  const stepMs: number[] = [];
  const losses: number[] = [];
  const skipped: boolean[] = [];
  while (!trainer.isDone) {
    const began = performance.now();
    const report = await trainer.step();
    stepMs.push(performance.now() - began);
    losses.push(report.loss);
    skipped.push(report.skipped);
    console.log(
      `step ${report.position.step}: ${seconds(stepMs.at(-1)!)} s, loss ${report.loss.toFixed(4)}, norm ${report.gradientNorm.toPrecision(4)}${report.skipped ? ', skipped' : ''}`,
    );
  }
  await gradients.release();
  const [firstMs, ...later] = stepMs;
  console.log(
    JSON.stringify({
      who: 'atelier',
      provider,
      compute,
      resolution,
      text,
      blocks: [doubleBlocks, singleBlocks],
      batch: batchSize,
      accumulation,
      rank,
      targets: options.targets,
      load_s: round(loadMs / 1e3),
      prepare_s: round(watched.prepareMs / 1e3),
      first_step_s: round(firstMs! / 1e3),
      step_s: round(median(later) / 1e3),
      picture_s: round(median(watched.lossMs.slice(batchSize * accumulation)) / 1e3),
      losses: losses.map(round),
      skipped: skipped.filter(Boolean).length,
      load_gb: round(loadGb),
      peak_gb: round(Math.max(loadGb, memory.takePeak())),
      host_gb: round((process.resourceUsage().maxRSS * 1024) / 1e9),
    }),
  );
}

function randomItems(count: number): TrainingItem[] {
  const random = new TorchGenerator(1);
  const side = resolution / 8;
  const values16 = 16 * side * side;
  const encoded = { text: random.randn(text * spec.jointDim), pooled: random.randn(spec.pooledDim) };
  return Array.from({ length: count }, () => ({
    latent: { channels: 16, height: side, width: side },
    mean: random.randn(values16).map((value) => value * 2),
    logVariance: new Float32Array(values16).fill(-10),
    text: encoded.text,
    pooled: random.randn(spec.pooledDim),
  }));
}

async function transformerFile(): Promise<string> {
  const isWhole = doubleBlocks === FLUX_DEV.doubleBlocks && singleBlocks === FLUX_DEV.singleBlocks;
  // Where the other benchmarks have it too.
  const folder = isWhole ? values.model : join(values.model, `blocks-${values.blocks}`);
  const path = join(folder, 'transformer.safetensors');
  if (
    await stat(path).then(
      () => true,
      () => false,
    )
  )
    return path;
  console.log(`writing random weights into ${folder}`);
  return writeRandomTransformer(folder, [doubleBlocks, singleBlocks]);
}

function seconds(ms: number): string {
  return (ms / 1e3).toFixed(2);
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}
