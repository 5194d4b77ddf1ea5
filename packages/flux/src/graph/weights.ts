import { closeSync, openSync, readSync } from 'node:fs';
import { decodeFloat32, type FloatDtype } from '../checkpoint/dtypes.ts';
import {
  ELEMENT_TYPES,
  type ElementType,
  type ExternalData,
  type GraphBuilder,
  type Value,
} from './builder.ts';

/** Where the bytes of a weight lie and how they are to be read. */
export interface LocatedTensor extends ExternalData {
  dtype: string;
  shape: readonly number[];
  /** Factor of scaled fp8; 1 or absent when the values are stored as they are. */
  scale?: number;
}

/** Where the weights of a model part are, by canonical name. */
export interface WeightLocator {
  /** @throws FluxError checkpoint_missing for an unknown name */
  locate(name: string): LocatedTensor;
  has(name: string): boolean;
}

const DTYPES: Readonly<Record<string, ElementType>> = Object.freeze({
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
  F8_E4M3: 'float8e4m3fn',
});

/** The type that a graph computes in. */
export type ComputeType = 'float32' | 'float16';

/** The weights of a graph by canonical name, as values of the type that it computes in. */
export interface Weights {
  get(name: string): Value;
  has(name: string): boolean;
}

/**
 * Weights as initializers. Bytes of the compute type are initializers as they lie in the file; others stay
 * as they are in memory and are converted when the graph runs. DequantizeLinear carries the scale of fp8 and, unlike
 * Cast, is not folded away by ONNX Runtime.
 */
export class GraphWeights implements Weights {
  readonly #graph: GraphBuilder;
  readonly #locator: WeightLocator;
  readonly #compute: ComputeType;

  constructor(graph: GraphBuilder, locator: WeightLocator, compute: ComputeType = 'float32') {
    this.#graph = graph;
    this.#locator = locator;
    this.#compute = compute;
  }

  has(name: string): boolean {
    return this.#locator.has(name);
  }

  get(name: string): Value {
    const located = this.#locator.locate(name);
    const type = DTYPES[located.dtype];
    if (!type) throw new Error(`${name}: ${located.dtype} has no place in a graph`);
    // A few MB in a whole model, for which a node in every step would cost more than the copy.
    if (this.#compute === 'float16' && type !== 'float16' && located.shape.length === 1)
      return this.#graph.constant(new Float16Array(readVector(located)), located.shape);
    const stored = this.#graph.external(name, type, located.shape, located);
    if (type === this.#compute) return stored;
    const wide = { type: this.#compute, shape: located.shape };
    if (type !== 'float8e4m3fn')
      return this.#graph.op('Cast', [stored], wide, { to: ELEMENT_TYPES[this.#compute] });
    const scale = Float32Array.of(located.scale ?? 1);
    const factor = this.#graph.constant(this.#compute === 'float16' ? new Float16Array(scale) : scale, []);
    return this.#graph.op('DequantizeLinear', [stored, factor], wide);
  }
}

/** The values of a small weight in fp32, scale applied. */
export function readVector({ file, offset, byteLength, dtype, scale }: LocatedTensor): Float32Array {
  const bytes = new Uint8Array(byteLength);
  const handle = openSync(file, 'r');
  try {
    if (readSync(handle, bytes, 0, byteLength, offset) !== byteLength)
      throw new Error(`${file} ends before byte ${offset + byteLength}`);
  } finally {
    closeSync(handle);
  }
  return decodeFloat32(dtype as FloatDtype, bytes, scale ?? 1);
}
