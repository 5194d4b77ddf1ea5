import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { openTiny } from '../../../../test/golden/support.ts';
import type { GraphBuilder } from '../graph/builder.ts';
import { bodies, executionOrder, peakLiveBytes } from '../graph/live-bytes.ts';
import type { ComputeType } from '../graph/weights.ts';
import { inPlace, writeConverted } from '../runtime/testing.ts';
import { prepareWeights } from '../checkpoint/prepare.ts';
import { openWeights } from '../checkpoint/weights.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { DeviceGradients } from './device-gradients.ts';
import { buildTrainingGraph } from './device-graph.ts';
import { type Gradients, LoraGradients, type LoraParameter, type TrainingSample } from './gradients.ts';
import { targetModules, type TrainingTargets } from './targets.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-device-gradients-'));
});
afterAll(() => rm(dir, { recursive: true }));

async function setUp(targets: TrainingTargets) {
  const { opened, files, locator } = await openTiny('tiny-dev');
  const { spec } = opened.transformer;
  const random = new TorchGenerator(3);
  const rank = 4;
  const parameters = (): LoraParameter[] => {
    const matrices = new TorchGenerator(11);
    const modules = targetModules({ transformer: spec, clip: opened.clip.spec }, targets);
    return modules.map((target): LoraParameter => {
      const down = matrices.randn(rank * target.inFeatures).map((value) => value * 0.1);
      const up = matrices.randn(target.outFeatures * rank).map((value) => value * 0.1);
      const [downGradient, upGradient] = [new Float32Array(down.length), new Float32Array(up.length)];
      return { ...target, rank, scale: 2, down, up, downGradient, upGradient };
    });
  };
  const sample = (sigma: number, text: number, height: number, width: number): TrainingSample => ({
    noisy: random.randn(height * width * spec.inChannels),
    target: random.randn(height * width * spec.outChannels),
    sigma,
    guidance: 1 + sigma,
    text: random.randn(text * spec.jointDim),
    pooled: random.randn(spec.pooledDim),
    grid: { height, width },
  });
  const samples = [sample(0.3, 5, 3, 2), sample(0.8, 7, 2, 5)];
  return { spec, files, weights: locator('transformer'), parameters, samples };
}

/** Losses and accumulated gradients, a name with each. */
async function run(gradients: Gradients, parameters: LoraParameter[], samples: TrainingSample[]) {
  const losses: number[] = [];
  for (const sample of samples) losses.push(await gradients.loss(sample, 0.5));
  await gradients.release();
  const found = parameters.flatMap(({ module, downGradient, upGradient }) => [
    { name: `${module}.down`, values: downGradient },
    { name: `${module}.up`, values: upGradient },
  ]);
  return { losses, found };
}

function relativeError(found: Float32Array, expected: Float32Array): number {
  const norm = (values: Float32Array): number => Math.hypot(...values);
  return norm(found.map((value, i) => value - expected[i]!)) / norm(expected);
}

test.each<[TrainingTargets, ComputeType, number]>([
  ['attention', 'float32', 1e-5],
  ['all', 'float32', 1e-5],
  ['attention', 'float16', 2e-2],
  ['all', 'float16', 2e-2],
])('%s in %s: losses and gradients are those of the host', async (targets, compute, tolerance) => {
  const { spec, weights, parameters, samples } = await setUp(targets);
  const [host, device] = [parameters(), parameters()];
  const expected = await run(await LoraGradients.load(spec, weights, host, {}), host, samples);
  const gradients = await DeviceGradients.load(spec, weights, device, compute, {});
  await gradients.prepare(samples);
  const { losses, found } = await run(gradients, device, samples);
  losses.forEach((loss, i) => expect(Math.abs(loss / expected.losses[i]! - 1)).toBeLessThan(tolerance));
  for (const [i, { name, values }] of found.entries()) {
    const close = relativeError(values, expected.found[i]!.values) < tolerance;
    expect({ name, close }).toEqual({ name, close: true });
  }
});

test('modulations that were prepared for many samples at once are those of each alone', async () => {
  const { spec, weights, parameters, samples } = await setUp('attention');
  const [together, apart] = [parameters(), parameters()];
  const gradients = await DeviceGradients.load(spec, weights, together, 'float32', {});
  await gradients.prepare(samples.toReversed());
  const expected = await run(gradients, together, samples);
  const { losses } = await run(
    await DeviceGradients.load(spec, weights, apart, 'float32', {}),
    apart,
    samples,
  );
  losses.forEach((loss, i) => expect(loss).toBeCloseTo(expected.losses[i]!, 5));
});

test('weights in fp8 stay fp8 in memory and give the gradients of what they round to', async () => {
  const { spec, files, parameters, samples } = await setUp('attention');
  const isMatrix = (name: string, shape: readonly number[]): boolean =>
    shape.length > 1 && /transformer_blocks/.test(name);
  const source = await openWeights(files.transformer, 'transformer');
  const narrow = await writeConverted(source, join(dir, 'fp8.safetensors'), (name, shape) =>
    isMatrix(name, shape) ? 'scaled' : 'F32',
  );
  const fp8 = await openWeights(narrow, 'transformer');
  const wide = await prepareWeights({
    views: fp8.names().map((name) => fp8.get(name)),
    target: 'F32',
    cacheDir: dir,
    quantize: () => false,
  });
  const [host, device] = [parameters(), parameters()];
  const locator = { has: (name: string) => wide.has(name), locate: (name: string) => wide.get(name)! };
  const expected = await run(await LoraGradients.load(spec, locator, host, {}), host, samples);
  const gradients = await DeviceGradients.load(spec, inPlace(fp8), device, 'float32', {});
  const { losses, found } = await run(gradients, device, samples);
  losses.forEach((loss, i) => expect(loss / expected.losses[i]!).toBeCloseTo(1, 4));
  for (const [i, { name, values }] of found.entries()) {
    const close = relativeError(values, expected.found[i]!.values) < 1e-4;
    expect({ name, close }).toEqual({ name, close: true });
  }
});

test('gradients beyond the range of fp16 are not finite, and the loss is what it is', async () => {
  const { spec, weights, parameters, samples } = await setUp('attention');
  const device = parameters();
  const gradients = await DeviceGradients.load(spec, weights, device, 'float16', {});
  const loss = await gradients.loss(samples[0]!);
  expect(device.every(({ upGradient }) => upGradient.every((value) => value === 0))).toBe(true);
  expect(await gradients.loss(samples[0]!, 2 ** 24)).toBe(loss);
  const squares = device.flatMap(({ upGradient }) => [...upGradient]).reduce((sum, x) => sum + x * x, 0);
  expect(Number.isFinite(squares)).toBe(false);
  await gradients.release();
});

/** A training graph of so many blocks of the fixture's shapes, and its sizes in a picture. */
async function graphOf(doubleBlocks: number, singleBlocks: number, compute: ComputeType = 'float16') {
  const { opened, locator } = await openTiny('tiny-dev');
  const spec = { ...opened.transformer.spec, doubleBlocks, singleBlocks };
  const weights = locator('transformer');
  const first = (name: string): string => name.replace(/(transformer_blocks\.)\d+/, '$10');
  const modules = targetModules({ transformer: spec, clip: opened.clip.spec }, 'all');
  const g = buildTrainingGraph(
    spec,
    { has: (name) => weights.has(first(name)), locate: (name) => weights.locate(first(name)) },
    modules.map((module) => ({ ...module, rank: 4, scale: 2 })),
    compute,
  );
  const sizes = { S: 2304, T: 512 };
  return { g, sizes, keptBytes: (sizes.S + sizes.T) * spec.hiddenSize * 2 };
}

/** Names of the nodes that run, a node with bodies behind those of the body. */
async function executed(g: GraphBuilder, withGradients: boolean): Promise<string[]> {
  const model = g.build();
  const prefix = `profile-${withGradients}`;
  const session = await InferenceSession.create(model.bytes, {
    graphOptimizationLevel: 'disabled',
    enableProfiling: true,
    profileFilePrefix: join(dir, prefix),
    extra: { session: { model_external_initializers_file_folder_path: model.folder } },
  });
  const sizes: Record<string, number> = { S: 6, T: 5, 'T+S': 11 };
  const feeds = g.inputs.map(({ name, type, shape }) => {
    if (type === 'bool')
      return [name, new Tensor('bool', Uint8Array.of(Number(name === 'forward' || withGradients)), [])];
    const dims = shape.map((dim) => (typeof dim === 'number' ? dim : sizes[dim]!));
    return [name, new Tensor('float32', new Float32Array(dims.reduce((a, b) => a * b, 1)), dims)];
  });
  await session.run(Object.fromEntries(feeds) as Record<string, Tensor>);
  session.endProfiling();
  await session.release();
  const file = (await readdir(dir)).find((name) => name.startsWith(prefix))!;
  const events = JSON.parse(await readFile(join(dir, file), 'utf8')) as { cat: string; name: string }[];
  return events.flatMap(({ cat, name }) => {
    const node = /^(.*)_kernel_time$/.exec(name)?.[1];
    return cat === 'Node' && node ? [node] : [];
  });
}

/** The same from the order in which live memory is counted. */
function counted(g: GraphBuilder, withGradients: boolean): string[] {
  return executionOrder(g).flatMap((node) => {
    const [taken, skipped] = bodies(node);
    const isTaken = withGradients || node.inputs[0]?.name !== 'backward';
    const body = isTaken ? taken : skipped;
    const name = node.outputs[0]!.name;
    const own = name.endsWith('_0') ? name.slice(0, -2) : `out/${name}`;
    return [...(body ? counted(body, withGradients) : []), own];
  });
}

test.each([true, false])(
  'nodes run in the order in which live memory is counted, gradients: %s',
  async (on) => {
    const { g } = await graphOf(2, 3, 'float32');
    const order = counted(g, on);
    expect(await executed(g, on)).toEqual(order);
    // Five blocks computed anew and their gradients.
    expect(order.filter((name) => name.startsWith('Gemm')).length > 200).toBe(on);
  },
);

test('live memory grows with the number of blocks by what is kept of each, and by no more', async () => {
  const few = await graphOf(1, 1);
  const many = await graphOf(19, 38);
  const peak = ({ g, sizes }: typeof few): number => peakLiveBytes(g, sizes).bytes;
  const kept = 55 * few.keptBytes;
  // Of 10 MB per block that its gradients need: LoRA matrices, modulations and gradients of all blocks.
  expect(peak(many) - peak(few)).toBeLessThan(kept * 1.1);
  expect(peak(many) - peak(few)).toBeGreaterThan(kept * 0.6);
});

test('no block is computed anew before the gradients of the next one are there', async () => {
  const { g } = await graphOf(3, 4);
  const names = executionOrder(g).flatMap((node) =>
    bodies(node)
      .slice(0, 1)
      .map(({ name }) => name),
  );
  const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
  const blocks = [
    ...range(3).map((i) => `transformer_blocks.${i}.`),
    ...range(4).map((i) => `single_transformer_blocks.${i}.`),
  ];
  expect(names).toEqual([
    ...blocks.map((path) => `forward:${path}`),
    ...blocks.toReversed().map((path) => `backward:${path}`),
  ]);
});

test('more blocks are more graphs of the same size, and three nodes each in the one around them', async () => {
  const sizes = async (double: number, single: number) => {
    const { g } = await graphOf(double, single);
    const inner = g.plan.flatMap(bodies).map((body) => body.plan.length);
    return { outer: g.plan.length, largest: Math.max(...inner) };
  };
  const [few, many] = [await sizes(2, 2), await sizes(19, 38)];
  expect(many.largest).toBe(few.largest);
  // An If for either pass and the output of the gradients.
  expect(many.outer - few.outer).toBe(3 * 53);
});
