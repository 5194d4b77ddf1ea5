import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { backward } from '../../packages/flux/src/autodiff/backward.ts';
import {
  openSafetensors,
  readTensor,
  type SafetensorsFile,
} from '../../packages/flux/src/checkpoint/safetensors.ts';
import { GraphBuilder, type Value } from '../../packages/flux/src/graph/builder.ts';
import * as ops from '../../packages/flux/src/graph/ops.ts';
import { GraphSession } from '../../packages/flux/src/runtime/session.ts';
import { FIXTURES, maxAbsError } from './support.ts';

interface Operator {
  name: string;
  inputs: string[];
  outputs: number;
  gradients: string[];
  attributes: Record<string, never>;
}

/** Builds an operator of the reference; those without a place in a training graph are not in the table. */
const BUILD: Record<string, (g: GraphBuilder, x: Record<string, Value>) => Value[]> = {
  linear: (g, { x, weight, bias }) => [ops.linear(g, x!, weight!, bias!)],
  layer_norm: (g, { x, scale, bias }) => [ops.layerNorm(g, x!, scale!, bias!, 1e-6)],
  rms_norm: (g, { x, scale }) => [ops.rmsNorm(g, x!, scale!, 1e-6)],
  gelu_tanh: (g, { x }) => [ops.geluTanh(g, x!)],
  silu: (g, { x }) => [ops.silu(g, x!)],
  rotary: (g, { x, cos, sin }) => [ops.rotary(g, x!, cos!, sin!)],
  attention: (g, { q, k, v }) => [ops.attention(g, q!, k!, v!, { heads: 3 })],
  concat_rows: (g, { a, b }) => [ops.concat(g, [a!, b!], 0)],
  concat_columns: (g, { a, b }) => [ops.concat(g, [a!, b!], 1)],
  split: (g, { x }) => ops.split(g, x!, 1, [2, 4, 1]),
  mul: (g, { a, b }) => [ops.mul(g, a!, b!)],
  mul_row: (g, { a, b }) => [ops.mul(g, a!, b!)],
  add_row: (g, { a, b }) => [ops.add(g, a!, b!)],
};

const FOLDER = join(FIXTURES, 'training');
const { operators } = JSON.parse(readFileSync(join(FOLDER, 'training.json'), 'utf8')) as {
  operators: Operator[];
};

let file: SafetensorsFile;
beforeAll(async () => {
  file = await openSafetensors(join(FOLDER, 'training.safetensors'));
});

async function golden(name: string): Promise<{ data: Float32Array; dims: number[] }> {
  const info = file.tensors.get(name)!;
  const bytes = await readTensor(info);
  const data = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  return { data, dims: [...info.shape] };
}

test('every operator of the table has values to be compared with', () => {
  const named = new Set(operators.map(({ name }) => name));
  expect(Object.keys(BUILD).filter((name) => !named.has(name))).toEqual([]);
});

test.each(operators.filter(({ name }) => name in BUILD))('$name: output and gradients', async (operator) => {
  const g = new GraphBuilder(operator.name);
  const feeds: Record<string, { data: Float32Array; dims: number[] }> = {};
  const input = async (name: string, from: string): Promise<Value> => {
    const value = await golden(`operators/${operator.name}/${from}`);
    feeds[name] = value;
    return g.input(name, 'float32', value.dims);
  };
  const inputs: Record<string, Value> = {};
  for (const name of operator.inputs) inputs[name] = await input(name, name);
  const outputs = BUILD[operator.name]!(g, inputs);
  expect(outputs).toHaveLength(operator.outputs);
  const seeds = new Map<Value, Value>();
  for (const [k, output] of outputs.entries()) seeds.set(output, await input(`seed.${k}`, `upstream.${k}`));
  const gradients = backward(
    g,
    seeds,
    operator.gradients.map((name) => inputs[name]!),
  );
  outputs.forEach((output, k) => g.output(`output.${k}`, output));
  gradients.forEach((gradient, i) => g.output(`grad/${operator.gradients[i]!}`, gradient));

  const session = await GraphSession.create(operator.name, g.build());
  const names = [
    ...outputs.map((_, k) => `output.${k}`),
    ...operator.gradients.map((name) => `grad/${name}`),
  ];
  const results = await session.run(feeds, names);
  for (const name of names) {
    const expected = await golden(`operators/${operator.name}/${name}`);
    expect({ name, dims: results[name]!.dims }).toEqual({ name, dims: expected.dims });
    const close = maxAbsError(results[name]!.data, expected.data) < 1e-5;
    expect({ name, close }).toEqual({ name, close: true });
  }
  await session.release();
});

test('an operator without a derivative is named', () => {
  const g = new GraphBuilder('none');
  const x = g.input('x', 'float32', [2, 2]);
  const y = g.op('Erf', [x], x);
  expect(() => backward(g, new Map([[y, x]]), [x])).toThrow('Erf has no derivative');
});

test('a value that nothing depends on is named', () => {
  const g = new GraphBuilder('none');
  const x = g.input('x', 'float32', [2, 2]);
  const other = g.input('other', 'float32', [2, 2]);
  const y = ops.mul(g, x, x);
  expect(() => backward(g, new Map([[y, x]]), [other])).toThrow('nothing that was seeded depends on other');
});
