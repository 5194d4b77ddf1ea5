import { decodeTable } from '../checkpoint/dtypes.ts';
import { FluxError } from '../errors.ts';
import type { Feed } from '../runtime/session.ts';
import { type ElementType, ELEMENT_TYPES, type GraphBuilder, type Value } from './builder.ts';
import { cast, gather, mul, rows } from './ops.ts';
import type { ComputeType, LocatedTensor, WeightLocator, Weights } from './weights.ts';

/** Names of the inputs that hold a weight's bytes and the factor of scaled fp8: what follows is the canonical name. */
export const WEIGHT = 'weight:';
export const SCALE = 'scale:';

/** Weights that are widened at a time: indices and values of so many are in the device's memory, 6 to 8 bytes each. */
export const CHUNK = 2 ** 22;

/** Rows of a weight: `begin` is the first, `end` the one behind the last. */
export interface RowRange {
  readonly begin: number;
  readonly end: number;
}

/** What a graph asked of its weights. */
export interface WeightRequest {
  readonly name: string;
  readonly type: ComputeType;
  readonly range: RowRange | null;
}

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
  readonly #chunk: number;
  readonly #values = new Map<string, Value>();
  /** What was asked for, in order. */
  readonly requests: WeightRequest[] = [];

  /**
   * @param type of the values that `get` returns when it is not told another
   * @param chunk the most values of a weight that {@link ranges} lets be widened at once
   */
  constructor(graph: GraphBuilder, locator: WeightLocator, type: ComputeType, chunk = CHUNK) {
    this.#graph = graph;
    this.#locator = locator;
    this.#type = type;
    this.#chunk = chunk;
  }

  has(name: string): boolean {
    return this.#locator.has(name);
  }

  /** The weight in its own shape, or the rows in `range` of it, widened to `type`. */
  get(name: string, type: ComputeType = this.#type, range: RowRange | null = null): Value {
    return this.#once(`${type}:${name}:${range?.begin ?? ''}`, () => {
      this.requests.push({ name, type, range });
      return this.#widen(name, type, range);
    });
  }

  /** Rows of a weight. */
  rowCount(name: string): number {
    return this.#locator.locate(name).shape[0]!;
  }

  /** The rows of a matrix in parts that may be widened one after another; [null] when it is used in one piece. */
  ranges(name: string, type: ComputeType): (RowRange | null)[] {
    const located = this.#locator.locate(name);
    const { type: stored, coded } = storage(located);
    const [count = 1, ...rest] = located.shape;
    const width = rest.reduce((product, size) => product * size, 1);
    if (count * width <= this.#chunk || (!coded && stored === type && !isScaled(located))) return [null];
    // Matrix units of devices take eight columns of a product at a time.
    const most = Math.max(8, Math.floor(this.#chunk / width / 8) * 8);
    const step = Math.ceil(count / Math.ceil(count / most) / 8) * 8;
    return Array.from({ length: Math.ceil(count / step) }, (_, i) => ({
      begin: i * step,
      end: Math.min((i + 1) * step, count),
    }));
  }

  #widen(name: string, type: ComputeType, range: RowRange | null): Value {
    const g = this.#graph;
    const located = this.#locator.locate(name);
    const { type: stored, coded } = storage(located);
    const whole = this.#once(name, () => g.input(`${WEIGHT}${name}`, stored, located.shape));
    const input = range ? cut(g, whole, range) : whole;
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

/** The rows of `x` in a range that is known when the graph is built. */
export function cut(g: GraphBuilder, x: Value, { begin, end }: RowRange): Value {
  return rows(g, x, g.ints(begin), g.ints(end), end - begin);
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
