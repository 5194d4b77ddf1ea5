import { fromBinary } from '@bufbuild/protobuf';
import { encodeFloat32, type EncodedDtype } from '../checkpoint/dtypes.ts';
import { type TensorEntry, writeSafetensors } from '../checkpoint/safetensors.ts';
import { readFloat32 } from '../checkpoint/tensor-view.ts';
import type { WeightSource } from '../checkpoint/weights.ts';
import { ELEMENT_TYPES, type ElementType, GraphBuilder, type GraphModel } from '../graph/builder.ts';
import { ModelProtoSchema } from '../graph/proto/onnx_pb.js';
import { buildUnit, type UnitKind } from '../graph/streamed-units.ts';
import type { WeightLocator } from '../graph/weights.ts';

/** Support of the tests of streamed weights. */

/** A number format of a test checkpoint; `scaled` is fp8 with a factor per tensor, as ComfyUI stores it. */
export type StoredAs = EncodedDtype | 'scaled';

const FP8_MAX = 448;
const TYPE_NAMES = new Map<number, ElementType>(
  Object.entries(ELEMENT_TYPES).map(([name, type]) => [type, name as ElementType]),
);

/** Writes a checkpoint with the same weights under their canonical names, each in the format that `as` says. */
export async function writeConverted(
  source: WeightSource,
  target: string,
  as: (name: string, shape: readonly number[]) => StoredAs,
): Promise<string> {
  const entries: TensorEntry[] = [];
  for (const name of source.names()) {
    const view = source.get(name);
    const values = await readFloat32(view);
    const stored = as(name, view.shape);
    if (stored !== 'scaled') {
      entries.push({ name, dtype: stored, shape: view.shape, data: encodeFloat32(stored, values) });
      continue;
    }
    const scale = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / FP8_MAX;
    const data = encodeFloat32(
      'F8_E4M3',
      values.map((value) => value / scale),
    );
    const factor = encodeFloat32('F32', Float32Array.of(scale));
    entries.push({ name, dtype: 'F8_E4M3', shape: view.shape, data });
    entries.push({
      name: name.replace(/weight$/, 'scale_weight'),
      dtype: 'F32',
      shape: [],
      data: factor,
    });
  }
  await writeSafetensors(target, entries);
  return target;
}

/** Weights where they lie in the checkpoint. */
export function inPlace(source: WeightSource): WeightLocator {
  return { has: (name) => source.has(name), locate: (name) => source.get(name) };
}

/** A graph with a unit of one kind alone. */
export function unitGraph(kind: UnitKind, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('unit');
  const outputs = buildUnit(g, { kind, locator, adapted: new Set() });
  for (const [name, value] of Object.entries(outputs)) g.output(name, value);
  return g.build();
}

export interface Difference {
  max: number;
  mean: number;
}

/** Largest and mean absolute difference, relative to the rms of what was expected. */
export function difference(found: Float32Array, expected: Float32Array): Difference {
  if (found.length !== expected.length)
    throw new Error(`${found.length} values, expected ${expected.length}`);
  let [max, sum, squares] = [0, 0, 0];
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(found[i]! - expected[i]!);
    if (Number.isNaN(error)) throw new Error(`value ${i} is ${found[i]}, expected ${expected[i]}`);
    max = Math.max(max, error);
    sum += error;
    squares += expected[i]! ** 2;
  }
  const rms = Math.sqrt(squares / expected.length);
  return { max: max / rms, mean: sum / expected.length / rms };
}

/**
 * The types that operators compute in, from the first operand of each node. On the CPU provider fp16 operators run in
 * fp32 and nothing is rounded between them, so that what fp16 would lose there is seen only in the graph.
 */
export function operandTypes(graph: GraphModel): { opType: string; inputs: string[]; type: ElementType }[] {
  const { graph: proto } = fromBinary(ModelProtoSchema, graph.bytes);
  const nameOf = (type: number): ElementType => TYPE_NAMES.get(type)!;
  const types = new Map<string, ElementType>([
    ...graph.inputs.map(({ name, type }): [string, ElementType] => [name, type]),
    ...proto!.initializer.map(({ name, dataType }): [string, ElementType] => [name, nameOf(dataType)]),
  ]);
  /** Inputs and weights that a value was made of by operators that only convert it. */
  const origins = new Map<string, string>();
  return proto!.node.map(({ opType, input, output, attribute }) => {
    const type = types.get(input[0]!)!;
    const to = opType === 'Cast' ? nameOf(Number(attribute[0]!.i)) : type;
    for (const name of output) types.set(name, to);
    if (opType === 'Cast') origins.set(output[0]!, origins.get(input[0]!) ?? input[0]!);
    if (opType === 'Gather') origins.set(output[0]!, origins.get(input[1]!) ?? input[1]!);
    return { opType, inputs: input.map((name) => origins.get(name) ?? name), type };
  });
}
