import { maxAbsError, openTiny } from '../../../../test/golden/support.ts';
import type { WeightedDeltas } from '../graph/device-lora.ts';
import type { ComputeType } from '../graph/weights.ts';
import { Reserve } from '../runtime/reserve.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { composeDeltas, type Deltas } from '../lora/compose.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { loraGroups } from './device-graph.ts';
import { DeviceTokenPath } from './device-token-path.ts';
import { modulationLayout } from './modulation.ts';
import { residentTokenPath, type TokenPathFeeds } from './parts.ts';
import { ropeTable } from './rope.ts';

const GRID = { height: 3, width: 2 };
const TEXT = 5;
const STEPS = [-0.25, -0.5, -0.125];
const LENGTHS = Float32Array.from(STEPS);

/** Random inputs of all steps. */
function feedsOf(spec: TransformerSpec): TokenPathFeeds {
  const random = new TorchGenerator(1);
  const tokens = GRID.height * GRID.width;
  const size = modulationLayout(spec).size;
  const { cos, sin } = ropeTable(spec, TEXT, GRID.height, GRID.width);
  const angles = [TEXT + tokens, spec.headDim / 2];
  return {
    latents: { data: random.randn(tokens * spec.inChannels), dims: [tokens, spec.inChannels] },
    context: { data: random.randn(TEXT * spec.hiddenSize), dims: [TEXT, spec.hiddenSize] },
    modulation: {
      data: random.randn(STEPS.length * size).map((value) => value / 4),
      dims: [STEPS.length, size],
    },
    cos: { data: cos, dims: angles },
    sin: { data: sin, dims: angles },
  };
}

/** Steps one by one in the graph of the host, on random inputs, against all of them in one run of a device's. */
async function compare(compute: ComputeType, parts: readonly WeightedDeltas[]) {
  const { opened, locator } = await openTiny('tiny-dev');
  const { spec } = opened.transformer;
  const weights = locator('transformer');
  const deltas = composeDeltas(parts);
  const host = await residentTokenPath(spec, weights, {}, new Set(deltas.keys()));
  const device = await DeviceTokenPath.load(spec, weights, compute, {});
  const feeds = feedsOf(spec);
  const expected = await host.advance(feeds, LENGTHS, { deltas, parts: [] });
  const found = await device.advance(feeds, LENGTHS, { parts });
  await host.release();
  await device.release();
  return {
    found,
    error: maxAbsError(found, expected),
    moved: maxAbsError(feeds.latents.data, expected),
  };
}

/** A LoRA of other rank on every module, or on those that `wanted` lets through. */
async function lora(wanted: (path: string) => boolean, seed = 2): Promise<Deltas> {
  const { opened, locator } = await openTiny('tiny-dev');
  const random = new TorchGenerator(seed);
  const groups = loraGroups(opened.transformer.spec, locator('transformer'), 'all');
  return new Map(
    groups
      .flatMap(({ paths }) => paths)
      .filter(wanted)
      .map((module, i) => {
        const { shape } = locator('transformer').locate(`${module}.weight`);
        const [outFeatures, inFeatures] = shape as [number, number];
        const rank = 1 + ((i + seed) % 9);
        const down = random.randn(rank * inFeatures).map((value) => value / 8);
        const up = random.randn(outFeatures * rank).map((value) => value / 8);
        return [module, { module, rank, inFeatures, outFeatures, down, up }];
      }),
  );
}

const everything = (): boolean => true;
const attention = (path: string): boolean => path.includes('.attn.');

test.each<[string, () => Promise<WeightedDeltas[]>]>([
  ['no LoRA', async () => []],
  ['a LoRA on every linear', async () => [{ deltas: await lora(everything), weight: 1 }]],
  ['a LoRA on attention', async () => [{ deltas: await lora(attention), weight: -0.5 }]],
  [
    'a LoRA on some',
    async () => [{ deltas: await lora((path) => /to_q|ff\.net\.2|proj_mlp/.test(path)), weight: 1 }],
  ],
  [
    'three of different modules and weights',
    async () => [
      { deltas: await lora(everything), weight: 0.7 },
      { deltas: await lora(attention, 3), weight: -0.4 },
      { deltas: await lora((path) => path.includes('proj_out'), 4), weight: 1 },
    ],
  ],
])('all steps in one run are the steps one by one: %s', async (_name, partsOf) => {
  const parts = await partsOf();
  const exact = await compare('float32', parts);
  expect(exact.moved).toBeGreaterThan(0.1);
  expect(exact.error).toBeLessThan(1e-5);
  expect((await compare('float16', parts)).error).toBeLessThan(2e-2);
});

test('a LoRA changes the result', async () => {
  const styled = await compare('float32', [{ deltas: await lora(attention), weight: 1 }]);
  expect(maxAbsError((await compare('float32', [])).found, styled.found)).toBeGreaterThan(1e-2);
});

test('steps that were given room run as without', async () => {
  const { opened, locator } = await openTiny('tiny-dev');
  const { spec } = opened.transformer;
  const held: string[] = [];
  const reserve = new Reserve(3 * 2 ** 20, {});
  const path = await DeviceTokenPath.load(
    spec,
    locator('transformer'),
    'float32',
    {},
    {
      bytes: 2 ** 22,
      reserve: {
        hold: () => Promise.resolve(void held.push('hold')).then(() => reserve.hold()),
        free: () => reserve.free(),
      },
    },
  );
  const { found } = await compare('float32', []);
  const again = await path.advance(feedsOf(spec), LENGTHS, { parts: [] });
  expect(maxAbsError(again, found)).toBe(0);
  expect(held).toEqual(['hold']);
  await reserve.free();
  await path.release();
});
