import { decodeTable } from '../checkpoint/dtypes.ts';
import { FluxError } from '../errors.ts';
import type { Feed } from '../runtime/session.ts';
import { type ElementType, ELEMENT_TYPES, GraphBuilder, type GraphModel, type Value } from './builder.ts';
import { gather, mul } from './ops.ts';
import type { ComputeType, LocatedTensor, WeightLocator, Weights } from './weights.ts';

/** Names of the inputs that hold a weight's bytes and the factor of scaled fp8: what follows is the canonical name. */
export const WEIGHT = 'weight:';
export const SCALE = 'scale:';

type FeedArray = Uint8Array | Uint16Array | Float16Array | Float32Array;

interface Storage {
  readonly type: ElementType;
  readonly array: {
    new (buffer: ArrayBufferLike, offset: number, length: number): FeedArray;
    readonly BYTES_PER_ELEMENT: number;
  };
  /** Codes that graphs cannot take as numbers, bf16 and fp8 not being allowed as inputs: looked up in a table. */
  readonly coded?: 'F8_E4M3' | 'F8_E5M2' | 'BF16';
}

const STORAGE: Readonly<Record<string, Storage>> = Object.freeze({
  F32: { type: 'float32', array: Float32Array },
  F16: { type: 'float16', array: Float16Array },
  BF16: { type: 'uint16', array: Uint16Array, coded: 'BF16' },
  F8_E4M3: { type: 'uint8', array: Uint8Array, coded: 'F8_E4M3' },
  F8_E5M2: { type: 'uint8', array: Uint8Array, coded: 'F8_E5M2' },
});

/**
 * Weights as inputs of the graph, in the bytes of the checkpoint: `weight:<name>`, and `scale:<name>` where a factor
 * belongs to them. The graph widens them to the type it computes in, so that the host converts nothing and the device
 * holds only what one run is fed. {@link streamedFeeds} makes the feeds.
 */
export class StreamedWeights implements Weights {
  readonly #graph: GraphBuilder;
  readonly #locator: WeightLocator;
  readonly #type: ComputeType;
  readonly #values = new Map<string, Value>();
  /** What was asked for, in order. */
  readonly requests: { name: string; type: ComputeType }[] = [];

  /** @param type of the values that `get` returns when it is not told another */
  constructor(graph: GraphBuilder, locator: WeightLocator, type: ComputeType) {
    this.#graph = graph;
    this.#locator = locator;
    this.#type = type;
  }

  has(name: string): boolean {
    return this.#locator.has(name);
  }

  /** The weight in its own shape, widened to `type`. */
  get(name: string, type: ComputeType = this.#type): Value {
    return this.#once(`${type}:${name}`, () => {
      this.requests.push({ name, type });
      return this.#widen(name, type);
    });
  }

  #widen(name: string, type: ComputeType): Value {
    const g = this.#graph;
    const located = this.#locator.locate(name);
    const { type: stored, coded } = storage(located);
    const input = this.#once(name, () => g.input(`${WEIGHT}${name}`, stored, located.shape));
    const scale = isScaled(located)
      ? this.#once(`${SCALE}${name}`, () => g.input(`${SCALE}${name}`, 'float32', []))
      : null;
    if (!coded) {
      const factored = scale ? mul(g, cast(g, input, 'float32'), scale) : input;
      return cast(g, factored, type);
    }
    // The factor goes into the table: few products, and fp16 is rounded to once, with no factor too small for it.
    const values = this.#once(`${coded} ${scale?.name ?? ''} ${type}`, () => {
      const codes = decodeTable(coded);
      const table = g.constant(codes, [codes.length]);
      return cast(g, scale ? mul(g, table, scale) : table, type);
    });
    const indices = g.op('Cast', [input], { type: 'int32', shape: input.shape }, { to: ELEMENT_TYPES.int32 });
    return gather(g, values, indices);
  }

  #once(key: string, make: () => Value): Value {
    const known = this.#values.get(key);
    if (known) return known;
    const value = make();
    this.#values.set(key, value);
    return value;
  }
}

/**
 * Builds a graph whose weights are streamed. It is built twice: the first attempt tells which weights it uses, the
 * second starts with widening them. ONNX Runtime goes from the results backwards and, of a node's operands, first to
 * the one whose node was added last; a weight that is widened behind its operand's node is widened before everything
 * that the operand needs: all weights of a block would be in memory at once (0.7 GB more for a layer of T5-XXL in fp32).
 */
export function buildStreamed(
  name: string,
  locator: WeightLocator,
  type: ComputeType,
  build: (g: GraphBuilder, weights: StreamedWeights) => void,
): GraphModel {
  const trial = new GraphBuilder(name);
  const used = new StreamedWeights(trial, locator, type);
  build(trial, used);
  const g = new GraphBuilder(name);
  const weights = new StreamedWeights(g, locator, type);
  for (const request of used.requests) weights.get(request.name, request.type);
  build(g, weights);
  return g.build();
}

/** `x` in another floating-point type; itself when it has it already. */
export function cast(g: GraphBuilder, x: Value, type: ComputeType): Value {
  return x.type === type ? x : g.op('Cast', [x], { type, shape: x.shape }, { to: ELEMENT_TYPES[type] });
}

/** The bytes of a weight as the graph takes them, without a copy where they start on an element. */
export function streamedFeed(located: LocatedTensor, bytes: Uint8Array): Feed {
  const { array } = storage(located);
  const size = array.BYTES_PER_ELEMENT;
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  return {
    data: new array(aligned.buffer, aligned.byteOffset, aligned.byteLength / size),
    dims: located.shape,
  };
}

/** All feeds that {@link StreamedWeights} asks for when its graph uses the weight `name`. */
export function streamedFeeds(name: string, located: LocatedTensor, bytes: Uint8Array): Record<string, Feed> {
  return {
    [`${WEIGHT}${name}`]: streamedFeed(located, bytes),
    ...(isScaled(located)
      ? { [`${SCALE}${name}`]: { data: Float32Array.of(located.scale!), dims: [] } }
      : {}),
  };
}

/** Equal for weights that one graph can take in turn: the type of what is stored, and whether a factor comes with it. */
export function streamedKind(located: LocatedTensor): string {
  return isScaled(located) ? `${located.dtype}*` : located.dtype;
}

/** Bytes of one element as it is fed. */
export function elementBytes(located: LocatedTensor): number {
  return storage(located).array.BYTES_PER_ELEMENT;
}

function isScaled({ scale }: LocatedTensor): boolean {
  return scale !== undefined && scale !== 1;
}

function storage({ dtype }: LocatedTensor): Storage {
  const found = STORAGE[dtype];
  if (!found) {
    const allowed = Object.keys(STORAGE);
    throw new FluxError(
      'checkpoint_unsupported',
      `weights of dtype ${dtype} cannot be streamed; allowed are ${allowed.join(', ')}`,
      { details: { found: dtype, allowed } },
    );
  }
  return found;
}
