import { openTiny, rms, maxAbsError } from '../../../../test/golden/support.ts';
import type { ComputeType } from '../graph/weights.ts';
import { readFloat32 } from '../checkpoint/tensor-view.ts';
import { loraFeeds } from '../graph/device-lora.ts';
import type { Deltas } from '../lora/compose.ts';
import { GraphSession } from '../runtime/session.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { buildDeviceTokenPath, loraGroups } from './device-graph.ts';
import { modulationLayout } from './modulation.ts';
import { ropeTable } from './rope.ts';
import { buildTokenPath } from './token-path.ts';

const GRID = { height: 3, width: 2 };
const TEXT = 5;
const STEPS = [-0.25, -0.5, -0.125];

/** The step after step path of the CPU, on random inputs, against all steps in one run. */
async function compare(compute: ComputeType, deltas: Deltas) {
  const { opened, locator } = await openTiny('tiny-dev');
  const { spec } = opened.transformer;
  const weights = locator('transformer');
  const random = new TorchGenerator(1);
  const tokens = GRID.height * GRID.width;
  const size = modulationLayout(spec).size;
  const latents = random.randn(tokens * spec.inChannels);
  const context = { data: random.randn(TEXT * spec.hiddenSize), dims: [TEXT, spec.hiddenSize] };
  const modulation = random.randn(STEPS.length * size).map((value) => value / 4);
  const { cos, sin } = ropeTable(spec, TEXT, GRID.height, GRID.width);
  const angles = [TEXT + tokens, spec.headDim / 2];
  const common = { context, cos: { data: cos, dims: angles }, sin: { data: sin, dims: angles } };
  const dims = [tokens, spec.inChannels];

  const adapted = new Set(deltas.keys());
  const single = await GraphSession.create('token-path', buildTokenPath(spec, weights, { adapted }));
  const matrices = Object.fromEntries(
    [...deltas.values()].flatMap(({ module, down, up, rank, inFeatures, outFeatures }) => [
      [`${module}.down`, { data: down, dims: [rank, inFeatures] }],
      [`${module}.up`, { data: up, dims: [outFeatures, rank] }],
    ]),
  );
  const expected = latents.slice();
  for (const [i, delta] of STEPS.entries()) {
    const row = { data: modulation.subarray(i * size, (i + 1) * size), dims: [size] };
    const feeds = { ...common, ...matrices, modulation: row, latents: { data: expected, dims } };
    const { velocity } = await single.run(feeds, ['velocity']);
    velocity.data.forEach((value, j) => (expected[j]! += value * delta));
  }

  const bias = (path: string): Float32Array | null => biases.get(path) ?? null;
  const biases = new Map<string, Float32Array>();
  const groups = loraGroups(spec, weights);
  for (const path of groups.flatMap(({ paths }) => paths))
    if (opened.transformer.weights.has(`${path}.bias`))
      biases.set(path, await readFloat32(opened.transformer.weights.get(`${path}.bias`)));
  const many = await GraphSession.create('device', buildDeviceTokenPath(spec, weights, compute));
  const { denoised } = await many.run(
    {
      ...common,
      ...loraFeeds(groups, deltas.size > 0 ? [{ deltas, weight: 1 }] : null, bias, compute),
      latents: { data: latents, dims },
      modulation: { data: modulation, dims: [STEPS.length, size] },
      deltas: { data: Float32Array.from(STEPS), dims: [STEPS.length] },
      adapted: { type: 'bool', data: Uint8Array.of(deltas.size > 0 ? 1 : 0), dims: [] },
    },
    ['denoised'],
  );
  return {
    error: maxAbsError(denoised.data, expected),
    moved: maxAbsError(latents, expected),
    rms: rms(expected),
  };
}

/** A LoRA of other rank on every module, or on those that `wanted` lets through. */
async function lora(wanted: (path: string) => boolean): Promise<Deltas> {
  const { opened, locator } = await openTiny('tiny-dev');
  const random = new TorchGenerator(2);
  const paths = loraGroups(opened.transformer.spec, locator('transformer')).flatMap((group) => group.paths);
  return new Map(
    paths.filter(wanted).map((module, i) => {
      const [outFeatures, inFeatures] = locator('transformer').locate(`${module}.weight`).shape as [
        number,
        number,
      ];
      const rank = 1 + (i % 9);
      const down = random.randn(rank * inFeatures).map((value) => value / 8);
      const up = random.randn(outFeatures * rank).map((value) => value / 8);
      return [module, { module, rank, inFeatures, outFeatures, down, up }];
    }),
  );
}

test.each([
  ['no LoRA', () => false],
  ['a LoRA on every linear', () => true],
  ['a LoRA on some', (path: string) => /to_q|ff\.net\.2|proj_mlp/.test(path)],
])('all steps in one run are the steps one by one: %s', async (_name, wanted) => {
  const deltas = await lora(wanted);
  const exact = await compare('float32', deltas);
  expect(exact.moved).toBeGreaterThan(0.1);
  expect(exact.error).toBeLessThan(1e-5);
  const half = await compare('float16', deltas);
  expect(half.error).toBeLessThan(2e-2);
});

test('a LoRA changes the result', async () => {
  const [without, with_] = [
    await compare('float32', new Map()),
    await compare('float32', await lora(() => true)),
  ];
  expect(Math.abs(without.rms - with_.rms)).toBeGreaterThan(1e-3);
});
