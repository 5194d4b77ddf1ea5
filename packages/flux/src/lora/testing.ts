import type { ClipSpec, TransformerSpec } from '../checkpoint/spec.ts';
import { type TensorEntry, writeSafetensors } from '../checkpoint/safetensors.ts';
import { generator, type Random } from '../checkpoint/testing.ts';
import { type Matrix, multiply } from './matrix.ts';
import { loraTarget } from './target.ts';
import type { LoraDelta } from './types.ts';

/** Support of the tests in this folder. */

export const HIDDEN = 8;
export const MLP = 32;
export const JOINT = 6;
export const CHANNELS = 4;

export const TRANSFORMER_SPEC: TransformerSpec = Object.freeze({
  hiddenSize: HIDDEN,
  numHeads: 1,
  headDim: HIDDEN,
  doubleBlocks: 2,
  singleBlocks: 2,
  mlpSize: MLP,
  inChannels: CHANNELS,
  outChannels: CHANNELS,
  jointDim: JOINT,
  pooledDim: 5,
  guidanceEmbeds: true,
  axesDims: [2, 2, 4],
  theta: 10_000,
  timestepDim: 16,
  hasQkvBias: true,
});

export const CLIP_SPEC: ClipSpec = Object.freeze({
  vocabSize: 10,
  hiddenSize: 8,
  numHeads: 2,
  headDim: 4,
  layers: 2,
  mlpSize: 16,
  maxPositions: 7,
  activation: 'quick_gelu',
  layerNormEps: 1e-5,
  eosTokenId: 2,
  pooling: 'highest_id',
});

export const TARGET = loraTarget({ transformer: TRANSFORMER_SPEC, clip: CLIP_SPEC });

/** Seeded matrices of multiples of 1/8 in -1..1, of which every format up to fp8 holds each. */
export class Values {
  readonly #random: Random;

  constructor(seed: number) {
    this.#random = generator(seed);
  }

  matrix(rows: number, columns: number): Matrix {
    const data = Float32Array.from({ length: rows * columns }, () => (this.#random(17) - 8) / 8 || 0.5);
    return { rows, columns, data };
  }

  /** [down, up] of a change of shape [out, in]. */
  pair([out, inputs]: readonly [number, number], rank: number): { down: Matrix; up: Matrix } {
    return { down: this.matrix(rank, inputs), up: this.matrix(out, rank) };
  }
}

export type Tensors = Record<string, Matrix | number>;

/** Writes matrices and scalars as F32. */
export async function writeTensors(
  path: string,
  tensors: Tensors,
  metadata?: Record<string, string>,
): Promise<string> {
  await writeSafetensors(
    path,
    Object.entries(tensors).map(([name, value]) => f32(name, value)),
    metadata,
  );
  return path;
}

export function f32(name: string, value: Matrix | number): TensorEntry {
  const data = typeof value === 'number' ? Float32Array.of(value) : value.data;
  return {
    name,
    dtype: 'F32',
    shape: typeof value === 'number' ? [] : [value.rows, value.columns],
    data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  };
}

/** up · down · scale, the change of a weight. */
export function product(up: Matrix, down: Matrix, scale = 1): Matrix {
  const matrix = multiply(up, down);
  return { ...matrix, data: matrix.data.map((value) => value * scale) };
}

export function changeOf({ rank, inFeatures, outFeatures, up, down }: LoraDelta): Matrix {
  return multiply(
    { rows: outFeatures, columns: rank, data: up },
    { rows: rank, columns: inFeatures, data: down },
  );
}

export function rowsOf(matrix: Matrix, begin: number, end: number): Matrix {
  const { columns, data } = matrix;
  return { rows: end - begin, columns, data: data.slice(begin * columns, end * columns) };
}

/** Holds the changes of one part of a LoRA against expected ones, to a few units in the last place. */
export function expectChanges(
  found: ReadonlyMap<string, LoraDelta>,
  expected: Readonly<Record<string, Matrix>>,
): void {
  expect([...found.keys()].sort()).toEqual(Object.keys(expected).sort());
  for (const [module, change] of Object.entries(expected)) {
    const delta = found.get(module)!;
    expect(delta).toMatchObject({ module, outFeatures: change.rows, inFeatures: change.columns });
    expect(delta.up).toHaveLength(delta.outFeatures * delta.rank);
    expect(delta.down).toHaveLength(delta.rank * delta.inFeatures);
    const { data } = changeOf(delta);
    const error = data.reduce((max, value, i) => Math.max(max, Math.abs(value - change.data[i]!)), 0);
    expect({ module, error: error < 1e-5 ? 0 : error }).toEqual({ module, error: 0 });
  }
}
