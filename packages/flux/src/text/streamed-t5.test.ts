import { copyFile, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { readConfig } from '../checkpoint/config.ts';
import { T5_CONFIG, type T5Spec, t5Spec } from '../checkpoint/specs/text.ts';
import { FIXTURES, rejection, temporaryFolder } from '../checkpoint/testing.ts';
import { openWeights } from '../checkpoint/weights.ts';
import type { WeightLocator } from '../graph/weights.ts';
import {
  difference,
  inPlace,
  operandTypes,
  type StoredAs,
  unitGraph,
  writeConverted,
} from '../runtime/testing.ts';
import { StreamedT5, t5Kinds } from './streamed-t5.ts';
import { ResidentT5, type T5Encoder } from './t5-encoder.ts';

const MODELS = {
  mini: join(FIXTURES, '../../../models/mini/text_encoder_2'),
  'tiny-dev': join(FIXTURES, 'tiny-dev/text_encoder_2'),
  'tiny-schnell': join(FIXTURES, 'tiny-schnell/text_encoder_2'),
};
/** Padded as FLUX pads: the pad token is attended to. */
const IDS = [...Array.from({ length: 20 }, (_, i) => (i * 379 + 5) % 4096), 1, ...Array<number>(11).fill(0)];

const FORMATS: Record<string, (name: string, shape: readonly number[]) => StoredAs> = {
  fp32: () => 'F32',
  fp16: () => 'F16',
  bf16: () => 'BF16',
  fp8: () => 'F8_E4M3',
  'scaled fp8': (_, shape) => (shape.length === 2 ? 'scaled' : 'BF16'),
  'a format per layer': (name) => (name.includes('block.1.') ? 'BF16' : 'F16'),
};

const work = temporaryFolder();

async function open(path: string): Promise<{ spec: T5Spec; locator: WeightLocator }> {
  const weights = await openWeights(path, 't5');
  return { spec: t5Spec(weights, await readConfig(path, T5_CONFIG)), locator: inPlace(weights) };
}

async function hidden(encoder: T5Encoder): Promise<Float32Array> {
  try {
    return await encoder.hidden(IDS);
  } finally {
    await encoder.release();
  }
}

describe.each(Object.entries(MODELS))('%s', (name, folder) => {
  test.each(Object.entries(FORMATS))('in %s is what the resident encoder computes', async (format, as) => {
    const { spec } = await open(folder);
    const file = work.file(`${name} ${format}.safetensors`);
    await writeConverted(await openWeights(folder, 't5'), file, as);
    const locator = inPlace(await openWeights(file, 't5'));
    const resident = await hidden(await ResidentT5.load(spec, locator, {}));
    const exact = difference(await hidden(new StreamedT5(spec, locator, 'float32', {})), resident);
    expect(exact.max).toBeLessThan(1e-5);
    const half = difference(await hidden(new StreamedT5(spec, locator, 'float16', {})), resident);
    expect(half.max).toBeLessThan(3e-2);
    expect(half.mean).toBeLessThan(5e-3);
  });

  test('streamed from where its own checkpoint lies', async () => {
    const { spec, locator } = await open(folder);
    const streamed = await hidden(new StreamedT5(spec, locator, 'float32', {}));
    const whole = work.file(`${name} whole.safetensors`);
    await writeConverted(await openWeights(folder, 't5'), whole, () => 'F32');
    const resident = await ResidentT5.load(spec, inPlace(await openWeights(whole, 't5')), {});
    expect(difference(streamed, await hidden(resident)).max).toBeLessThan(1e-5);
  });
});

test('an encoder is used again, also while it is in use', async () => {
  const { spec, locator } = await open(MODELS['tiny-dev']);
  const encoder = new StreamedT5(spec, locator, 'float32', {});
  const other = IDS.toReversed();
  const [first, second] = await Promise.all([encoder.hidden(IDS), encoder.hidden(other)]);
  expect(await encoder.hidden(IDS)).toEqual(first);
  expect(await encoder.hidden(other)).toEqual(second);
  expect(difference(first, second).max).toBeGreaterThan(0.1);
  await encoder.release();
});

test('what leaves the range of fp16 in T5-XXL is computed in fp32, the other products in fp16', async () => {
  const file = work.file('types.safetensors');
  const { spec } = await open(MODELS['tiny-dev']);
  await writeConverted(await openWeights(MODELS['tiny-dev'], 't5'), file, () => 'F8_E4M3');
  const { attention, feedForward } = t5Kinds(spec, 'float16');
  const locator = inPlace(await openWeights(file, 't5'));
  const operators = [attention, feedForward].flatMap((kind) => operandTypes(unitGraph(kind, locator)));
  const typeOf = (opType: string): string[] =>
    operators.filter((operator) => operator.opType === opType).map(({ type }) => type);
  const products = operators
    .filter(({ opType }) => opType === 'Gemm')
    .map(({ inputs, type }) => [/(\w+)\.weight$/.exec(inputs[1]!)?.[1], type]);
  expect(Object.fromEntries(products)).toEqual({
    q: 'float16',
    k: 'float16',
    v: 'float16',
    o: 'float16',
    wi_0: 'float16',
    wi_1: 'float16',
    wo: 'float32',
  });
  expect(typeOf('MultiHeadAttention')).toEqual(['float16']);
  expect(typeOf('Add')).toEqual(['float32', 'float32']);
  expect(typeOf('SimplifiedLayerNormalization')).toEqual(['float32', 'float32']);
});

test('weights are widened by the first nodes, so that each is widened just before its use', async () => {
  const file = work.file('order.safetensors');
  const { spec } = await open(MODELS['tiny-dev']);
  await writeConverted(await openWeights(MODELS['tiny-dev'], 't5'), file, () => 'F8_E4M3');
  const { attention, feedForward } = t5Kinds(spec, 'float16');
  const locator = inPlace(await openWeights(file, 't5'));
  for (const [kind, count] of [
    [attention, 6],
    [feedForward, 4],
  ] as const) {
    const operators = operandTypes(unitGraph(kind, locator));
    const widening = operators.map(
      ({ opType, inputs }) => opType === 'Gather' && inputs[1]!.startsWith('weight:'),
    );
    expect(widening.filter(Boolean)).toHaveLength(count);
    const first = operators.findIndex(({ opType }) => opType === 'SimplifiedLayerNormalization');
    expect(widening.lastIndexOf(true)).toBeLessThan(first);
  }
});

test('a token that the vocabulary does not have is refused', async () => {
  const { spec, locator } = await open(MODELS['tiny-dev']);
  const encoder = new StreamedT5(spec, locator, 'float32', {});
  await expect(encoder.hidden([spec.vocabSize])).rejects.toThrow(`token ${spec.vocabSize}`);
  await encoder.release();
});

test('a checkpoint that is gone or was cut short after it was opened is an error', async () => {
  const file = work.file('cut.safetensors');
  const { spec } = await open(MODELS['tiny-dev']);
  await copyFile(join(MODELS['tiny-dev'], 'model.safetensors'), file);
  const encoder = new StreamedT5(spec, inPlace(await openWeights(file, 't5')), 'float32', {});
  await encoder.hidden(IDS);
  const last = inPlace(await openWeights(file, 't5')).locate(
    'encoder.block.2.layer.0.SelfAttention.q.weight',
  );
  await truncate(file, last.offset + 8);
  expect((await rejection(encoder.hidden(IDS))).code).toBe('checkpoint_invalid');
  await rm(file);
  expect((await rejection(encoder.hidden(IDS))).code).toBe('checkpoint_missing');
  await encoder.release();
});
