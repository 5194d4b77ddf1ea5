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

/** The weights of a graph by canonical name, as fp32 values. */
export interface Weights {
  get(name: string): Value;
  has(name: string): boolean;
}

/**
 * Weights as initializers. fp32 bytes are initializers as they lie in the file; narrower ones stay
 * narrow in memory and are widened when the graph runs. DequantizeLinear carries the scale of fp8 and, unlike Cast,
 * is not folded away by ONNX Runtime.
 */
export class GraphWeights implements Weights {
  readonly #graph: GraphBuilder;
  readonly #locator: WeightLocator;

  constructor(graph: GraphBuilder, locator: WeightLocator) {
    this.#graph = graph;
    this.#locator = locator;
  }

  has(name: string): boolean {
    return this.#locator.has(name);
  }

  get(name: string): Value {
    const located = this.#locator.locate(name);
    const type = DTYPES[located.dtype];
    if (!type) throw new Error(`${name}: ${located.dtype} has no place in a graph`);
    const stored = this.#graph.external(name, type, located.shape, located);
    const wide = { type: 'float32' as const, shape: located.shape };
    if (type === 'float32') return stored;
    if (type !== 'float8e4m3fn') return this.#graph.op('Cast', [stored], wide, { to: ELEMENT_TYPES.float32 });
    const scale = this.#graph.constant(new Float32Array([located.scale ?? 1]), []);
    return this.#graph.op('DequantizeLinear', [stored, scale], wide);
  }
}
