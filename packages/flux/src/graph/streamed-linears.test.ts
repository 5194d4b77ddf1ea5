import { encodeFloat32, type EncodedDtype } from '../checkpoint/dtypes.ts';
import { type Feed, GraphSession } from '../runtime/session.ts';
import { difference } from '../runtime/testing.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { t5Kinds } from '../text/streamed-t5.ts';
import { tokenPathKinds } from '../transformer/streamed-token-path.ts';
import { GraphBuilder, type NodeRecord } from './builder.ts';
import { peakLiveBytes } from './live-bytes.ts';
import { StreamedLinears } from './streamed-linears.ts';
import { CHUNK, StreamedWeights, streamedFeeds } from './streamed-weights.ts';
import { buildUnit } from './streamed-units.ts';
import type { ComputeType, LocatedTensor, WeightLocator } from './weights.ts';

const [TOKENS, WIDTH, ROWS, RANK] = [5, 24, 37, 3];
const random = new TorchGenerator(4);

interface Case {
  dtype: EncodedDtype;
  compute: ComputeType;
  scale?: number;
  adapted?: boolean;
}

/** Result and nodes of GELU(linear) with a weight [37, 24] in parts of at most `chunk` values. */
async function run(
  { dtype, compute, scale, adapted }: Case,
  tensors: Record<'weight' | 'bias' | 'x' | 'down' | 'up', Float32Array>,
  chunk: number,
): Promise<{ y: Float32Array; records: readonly NodeRecord[] }> {
  const located = (name: 'weight' | 'bias', shape: number[]): [LocatedTensor, Uint8Array] => {
    const bytes = encodeFloat32(dtype, tensors[name]);
    const { byteLength } = bytes;
    return [{ file: '', offset: 0, byteLength, dtype, shape, ...(scale ? { scale } : {}) }, bytes];
  };
  const all = new Map([
    ['m.weight', located('weight', [ROWS, WIDTH])],
    ['m.bias', located('bias', [ROWS])],
  ]);
  const g = new GraphBuilder('linear');
  const from = { has: (name: string) => all.has(name), locate: (name: string) => all.get(name)![0] };
  const weights = new StreamedWeights(g, from, compute, chunk);
  const x = g.input('x', compute, ['T', WIDTH]);
  const linears = new StreamedLinears(g, weights, new Set(adapted ? ['m'] : []));
  g.output('y', linears.applyGelu(x, 'm'));
  const session = await GraphSession.create('linear', g.build());
  const feeds: Record<string, Feed> = {
    x: {
      data: compute === 'float16' ? new Float16Array(tensors.x) : tensors.x,
      dims: [TOKENS, WIDTH],
    },
  };
  for (const [name, [where, bytes]] of all) Object.assign(feeds, streamedFeeds(name, where, bytes));
  if (adapted) {
    feeds['m.down'] = { data: tensors.down, dims: [RANK, WIDTH] };
    feeds['m.up'] = { data: tensors.up, dims: [ROWS, RANK] };
  }
  const { y } = await session.run<'y', Float32Array | Float16Array>(feeds, ['y']);
  await session.release();
  expect(y.dims).toEqual([TOKENS, ROWS]);
  return { y: new Float32Array(y.data), records: g.records };
}

const CASES: Record<string, Case> = {
  'bf16 in fp16': { dtype: 'BF16', compute: 'float16' },
  'bf16 in fp32': { dtype: 'BF16', compute: 'float32' },
  'fp8 in fp16': { dtype: 'F8_E4M3', compute: 'float16' },
  'scaled fp8 in fp16': { dtype: 'F8_E4M3', compute: 'float16', scale: 0.125 },
  'fp32 in fp16': { dtype: 'F32', compute: 'float16' },
  'fp16 in fp32': { dtype: 'F16', compute: 'float32' },
  'fp8 with a LoRA': { dtype: 'F8_E4M3', compute: 'float16', adapted: true },
  'bf16 with a LoRA in fp32': { dtype: 'BF16', compute: 'float32', adapted: true },
};

test.each(Object.entries(CASES))('%s: in parts as in one piece', async (_name, of) => {
  const tensors = {
    weight: random.randn(ROWS * WIDTH),
    bias: random.randn(ROWS),
    x: random.randn(TOKENS * WIDTH),
    down: random.randn(RANK * WIDTH),
    up: random.randn(ROWS * RANK),
  };
  const whole = await run(of, tensors, ROWS * WIDTH);
  // 888 values: three parts of 16, 16 and 5 rows.
  const parts = await run(of, tensors, 16 * WIDTH);
  // Sums of other lengths may be added in another order, and then round to the neighbouring half.
  expect(difference(parts.y, whole.y).max).toBeLessThan(of.compute === 'float32' ? 1e-6 : 2e-3);
  const products = ({ records }: typeof whole): number =>
    records.filter(({ opType, outputs }) => opType === 'Gemm' && outputs[0]!.shape[1] !== `rank:m`).length;
  const [one, several] = [products(whole), products(parts)];
  expect(several).toBe(of.adapted ? one + 4 : one + 2);
  expect(largest(parts.records)).toBeLessThanOrEqual(16 * WIDTH);
  expect(largest(whole.records)).toBe(ROWS * WIDTH);
});

test('a weight that is not widened stays in one piece', () => {
  const g = new GraphBuilder('plain');
  const weights = new StreamedWeights(
    g,
    { has: () => true, locate: () => fake('F16', [64, 64]) },
    'float16',
    64,
  );
  expect(weights.ranges('w', 'float16')).toEqual([null]);
  expect(weights.ranges('w', 'float32')).toHaveLength(8);
});

/** FLUX.1-dev and T5-XXL by their sizes alone, at the largest picture of a plan. */
const T5_XXL = {
  layers: 24,
  modelDim: 4096,
  numHeads: 64,
  headDim: 64,
  mlpSize: 10240,
  vocabSize: 32128,
  relativeBuckets: 32,
  relativeMaxDistance: 128,
  layerNormEps: 1e-6,
  padTokenId: 0,
};
const FLUX = {
  hiddenSize: 3072,
  numHeads: 24,
  headDim: 128,
  doubleBlocks: 19,
  singleBlocks: 38,
  mlpSize: 12288,
  inChannels: 64,
  outChannels: 64,
  jointDim: 4096,
  pooledDim: 768,
  guidanceEmbeds: true,
  axesDims: [16, 56, 56],
  theta: 10000,
  hasQkvBias: true,
  timestepDim: 256,
};
const SIZES = { T: 512, S: 4096, N: 4608 };

function locator(dtype: string, shapeOf: (name: string) => number[]): WeightLocator {
  return {
    has: (name) => shapeOf !== t5Shape || name.endsWith('.weight'),
    locate: (name) => fake(dtype, shapeOf(name)),
  };
}

function fake(dtype: string, shape: number[]): LocatedTensor {
  return { file: '', offset: 0, byteLength: 0, dtype, shape };
}

function t5Shape(name: string): number[] {
  if (name.includes('relative_attention_bias')) return [32, 64];
  if (name.includes('norm')) return [4096];
  return name.includes('.wi_') ? [10240, 4096] : name.includes('.wo.') ? [4096, 10240] : [4096, 4096];
}

function fluxShape(name: string): number[] {
  const shape = /proj_mlp|net\.0/.test(name)
    ? [12288, 3072]
    : name.includes('net.2')
      ? [3072, 12288]
      : name.startsWith('single') && name.includes('proj_out')
        ? [3072, 15360]
        : name.startsWith('x_embedder')
          ? [3072, 64]
          : name.startsWith('proj_out')
            ? [64, 3072]
            : /norm_\w+\.weight/.test(name)
              ? [128]
              : [3072, 3072];
  return name.endsWith('.bias') ? shape.slice(0, 1) : shape;
}

const T5 = t5Kinds(T5_XXL, 'float16');
const TOKEN_PATH = tokenPathKinds(FLUX, 'float16');

test.each([
  ['attention of T5 in bf16', T5.attention, locator('BF16', t5Shape), 77],
  ['attention of T5 in fp8', T5.attention, locator('F8_E4M3', t5Shape), 77],
  ['feed-forward of T5 in bf16', T5.feedForward, locator('BF16', t5Shape), 61],
  ['feed-forward of T5 in fp8', T5.feedForward, locator('F8_E4M3', t5Shape), 61],
  ['double block in fp8', TOKEN_PATH.double, locator('F8_E4M3', fluxShape), 220],
  ['single block in fp8', TOKEN_PATH.single, locator('F8_E4M3', fluxShape), 271],
])('%s at full size: one part of a weight is widened at a time', (_name, kind, from, mib) => {
  const g = new GraphBuilder('unit');
  const outputs = buildUnit(g, { kind, locator: from, adapted: new Set() });
  for (const [name, value] of Object.entries(outputs)) g.output(name, value);
  expect(largest(g.records)).toBeLessThanOrEqual(CHUNK);
  expect(peakLiveBytes(g, SIZES).bytes / 2 ** 20).toBeLessThan(mib);
});

/** Elements of the largest matrix that a graph makes of weights alone. */
function largest(records: readonly NodeRecord[]): number {
  const sizes = records.flatMap(({ outputs }) =>
    outputs.map(({ shape }) =>
      shape.length > 1 && shape.every((dim) => typeof dim === 'number')
        ? shape.reduce((product, dim) => product * dim, 1)
        : 0,
    ),
  );
  return Math.max(0, ...sizes);
}
