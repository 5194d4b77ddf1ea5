import { join } from 'node:path';
import { FIXTURES, goldens, TOLERANCE } from '../../../../test/golden/support.ts';
import { readConfig } from '../checkpoint/config.ts';
import { type TransformerSpec, transformerSpec, TRANSFORMER_CONFIG } from '../checkpoint/spec.ts';
import { openWeights } from '../checkpoint/weights.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { type Deltas, NO_DELTAS } from '../lora/compose.ts';
import { difference, inPlace } from '../runtime/testing.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { type ConditioningInput, Transformer, type TransformerPlan } from './transformer.ts';

const VARIANTS = join(FIXTURES, 'tiny-dev/variants');
const CHECKPOINTS: Record<string, string> = {
  mini: join(FIXTURES, '../../../models/mini/transformer.safetensors'),
  'tiny-dev': join(FIXTURES, 'tiny-dev/transformer.safetensors'),
  'tiny-schnell': join(FIXTURES, 'tiny-schnell/transformer'),
  ...Object.fromEntries(
    ['fp16', 'bf16', 'fp8', 'fp8_scaled'].map((name) => [name, join(VARIANTS, `${name}.safetensors`)]),
  ),
};
const GRID = { height: 4, width: 3 };
const TEXT = 7;
const STEPS = [0.9, 0.31, 0];
const EXACT: TransformerPlan = { conditioner: 'streamed', tokenPath: 'streamed', compute: 'float32' };
const HALF: TransformerPlan = { ...EXACT, compute: 'float16' };

interface Opened {
  spec: TransformerSpec;
  locator: WeightLocator;
  names: string[];
}

async function open(path: string): Promise<Opened> {
  const weights = await openWeights(path, 'transformer');
  const spec = transformerSpec(weights, await readConfig(path, TRANSFORMER_CONFIG));
  return { spec, locator: inPlace(weights), names: weights.names() };
}

/** Modulations, context and the velocities of both steps on random inputs. */
async function results(model: Transformer, deltas: Deltas): Promise<Record<string, Float32Array>> {
  const { spec } = model;
  const random = new TorchGenerator(3);
  const input: ConditioningInput = {
    text: random.randn(TEXT * spec.jointDim),
    pooled: random.randn(spec.pooledDim),
    guidance: 3.5,
    sigmas: Float32Array.from(STEPS),
    grid: GRID,
  };
  const conditioning = await model.condition(input, { deltas, parts: [] });
  const latents = random.randn(GRID.height * GRID.width * spec.inChannels);
  const { modulation, context } = conditioning;
  const velocities = [0, 1].map(async (step) => model.velocity(latents, conditioning, step));
  const [first, second] = (await Promise.all(velocities)) as [Float32Array, Float32Array];
  return { modulation, context, first, second };
}

async function compare(
  { spec, locator }: Opened,
  streamed: TransformerPlan,
  deltas: Deltas = NO_DELTAS,
): Promise<{ max: number; mean: number }> {
  const adapted = new Set(deltas.keys());
  const resident = await Transformer.load(spec, locator, {}, adapted);
  const model = await Transformer.load(spec, locator, {}, adapted, streamed);
  const [expected, found] = [await results(resident, deltas), await results(model, deltas)];
  await resident.release();
  await model.release();
  const all = Object.keys(expected).map((name) => difference(found[name]!, expected[name]!));
  return { max: Math.max(...all.map(({ max }) => max)), mean: Math.max(...all.map(({ mean }) => mean)) };
}

/** LoRAs of different ranks for the modules that `wanted` lets through. */
function loras({ names, locator }: Opened, wanted: (module: string) => boolean): Deltas {
  const random = new TorchGenerator(2);
  const modules = names.flatMap((name) =>
    name.endsWith('.weight') && locator.locate(name).shape.length === 2 ? [name.slice(0, -7)] : [],
  );
  return new Map(
    modules.filter(wanted).map((module, i) => {
      const [outFeatures, inFeatures] = locator.locate(`${module}.weight`).shape as [number, number];
      const rank = 1 + (i % 5);
      const down = random.randn(rank * inFeatures).map((value) => value / 8);
      const up = random.randn(outFeatures * rank).map((value) => value / 8);
      return [module, { module, rank, inFeatures, outFeatures, down, up }];
    }),
  );
}

describe.each(Object.entries(CHECKPOINTS))('%s', (_name, path) => {
  test('streamed is resident, in fp32 and about so in fp16', async () => {
    const opened = await open(path);
    expect((await compare(opened, EXACT)).max).toBeLessThan(1e-5);
    const half = await compare(opened, HALF);
    expect(half.max).toBeLessThan(3e-2);
    expect(half.mean).toBeLessThan(5e-3);
  });
});

describe('LoRAs', () => {
  test.each([
    ['every linear', () => true],
    ['the modulations', (module: string) => /norm\w*\.linear/.test(module)],
    ['some modules of some blocks', (module: string) => /1\.attn\.to_q|0\.ff\.net|proj_out/.test(module)],
  ])('on %s', async (_what, wanted) => {
    const opened = await open(CHECKPOINTS['tiny-dev']!);
    const deltas = loras(opened, wanted);
    expect(deltas.size).toBeGreaterThan(2);
    expect((await compare(opened, EXACT, deltas)).max).toBeLessThan(1e-5);
    const half = await compare(opened, { ...HALF, conditioner: 'resident' }, deltas);
    expect(half.max).toBeLessThan(3e-2);
    expect(half.mean).toBeLessThan(5e-3);
    const { spec, locator } = opened;
    const model = await Transformer.load(spec, locator, {}, new Set(), EXACT);
    const [plain, adapted] = [await results(model, NO_DELTAS), await results(model, deltas)];
    expect(difference(adapted['first']!, plain['first']!).max).toBeGreaterThan(1e-2);
    // Sessions with and without LoRAs live side by side.
    expect(await results(model, NO_DELTAS)).toEqual(plain);
    await model.release();
  });
});

test('other weights for a streamed transformer are read where they are', async () => {
  const [plain, other] = [await open(CHECKPOINTS['fp16']!), await open(CHECKPOINTS['fp8']!)];
  const model = await Transformer.load(plain.spec, plain.locator, {}, new Set(), EXACT);
  const changed = await model.withWeights(other.locator, new Set(['proj_out']));
  const expected = await Transformer.load(other.spec, other.locator, {}, new Set(), EXACT);
  expect(await results(changed, NO_DELTAS)).toEqual(await results(expected, NO_DELTAS));
  await Promise.all([model, changed, expected].map((one) => one.release()));
});

test.each(['fp16', 'bf16', 'fp8', 'fp8_scaled'])('%s gives the velocity of diffusers', async (variant) => {
  const golden = await goldens('tiny-dev');
  const { spec, locator } = await open(CHECKPOINTS[variant]!);
  const model = await Transformer.load(spec, locator, {}, new Set(), EXACT);
  const [{ sigma, guidance, rows, columns }] = golden.json['transformer'] as [
    { sigma: number; guidance: number; rows: number; columns: number },
  ];
  const get = async (key: string) => (await golden.get(`transformer/0/${key}`)).data;
  const conditioning = await model.condition({
    text: await get('encoder_hidden_states'),
    pooled: await get('pooled'),
    guidance,
    sigmas: Float32Array.of(sigma, 0),
    grid: { height: rows, width: columns },
  });
  const velocity = await model.velocity(await get('hidden_states'), conditioning, 0);
  const expected = (await golden.get(`variants/${variant}/output`)).data;
  expect(difference(velocity, expected).max).toBeLessThan(TOLERANCE);
  await model.release();
});
