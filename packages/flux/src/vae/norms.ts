import { ELEMENT_TYPES, type GraphBuilder, type Value } from '../graph/builder.ts';
import { add, concat, gather, mul, reshape } from '../graph/ops.ts';

/** Epsilon of every norm in diffusers' AutoencoderKL. */
const EPSILON = 1e-6;

/** In how many parts of its channels a value's statistics are computed. */
const BANDS = 4;

/** A group norm with its scale and bias [channels]. x [1, channels, height, width]; `perLatent` are its positions. */
export interface GroupNorms {
  normalize(x: Value, weight: Value, bias: Value, perLatent: number): Value;
}

/**
 * Norms that see the whole of x. ONNX Runtime has no CPU kernel for group norm: the groups are normalised as
 * instances, then every channel gets its own scale and bias.
 */
export class WholeNorms implements GroupNorms {
  readonly #g: GraphBuilder;
  readonly #groups: number;

  constructor(g: GraphBuilder, groups: number) {
    this.#g = g;
    this.#groups = groups;
  }

  normalize(x: Value, weight: Value, bias: Value): Value {
    const g = this.#g;
    const groups = this.#groups;
    const channels = x.shape[1] as number;
    const ones = g.constant(new Float32Array(groups).fill(1), [groups]);
    const zeros = g.constant(new Float32Array(groups), [groups]);
    const grouped = reshape(g, x, [0, groups, -1], [1, groups, 'group']);
    const normed = g.op('InstanceNormalization', [grouped, ones, zeros], grouped, {
      epsilon: { float: EPSILON },
    });
    const shape = g.op('Shape', [x], { type: 'int64', shape: [4] });
    const back = g.op('Reshape', [normed, shape], x);
    const perChannel = (value: Value): Value => reshape(g, value, [channels, 1, 1], [channels, 1, 1]);
    return add(g, mul(g, back, perChannel(weight)), perChannel(bias));
  }
}

/**
 * Norms of a graph that sees one tile of a picture. Further inputs of the graph:
 * - `statistics` [norms, groups, 2]: mean and variance of the picture's groups
 * - `given` bool [1]: whether these are used; else those of the tile itself
 * - `begin`, `end` int64 [2]: row and column, in latents, of the part of the tile that it alone answers for
 *
 * Its further output `collected` [norms, groups, 2] are mean and variance of that part. Both are computed in two
 * steps, as E[x^2] - E[x]^2 cancels in fp32, and for some channels at a time, so that the centred values do not add to
 * the most that a run needs.
 */
export class TileNorms implements GroupNorms {
  readonly #g: GraphBuilder;
  readonly #groups: number;
  readonly #statistics: Value;
  readonly #given: Value;
  readonly #begin: Value;
  readonly #end: Value;
  readonly #collected: Value[] = [];

  constructor(g: GraphBuilder, groups: number) {
    this.#g = g;
    this.#groups = groups;
    this.#statistics = g.input('statistics', 'float32', ['norms', groups, 2]);
    this.#given = g.input('given', 'bool', [1]);
    this.#begin = g.input('begin', 'int64', [2]);
    this.#end = g.input('end', 'int64', [2]);
  }

  /** How many norms the graph has so far. */
  get count(): number {
    return this.#collected.length;
  }

  normalize(x: Value, weight: Value, bias: Value, perLatent: number): Value {
    const g = this.#g;
    const groups = this.#groups;
    const channels = x.shape[1] as number;
    const own = this.#own(x, perLatent);
    const index = g.constant(BigInt64Array.of(BigInt(this.count)), []);
    this.#collected.push(reshape(g, own, [1, groups, 2], [1, groups, 2]));
    const used = g.op('Where', [this.#given, gather(g, this.#statistics, index), own], own);
    const column = { type: x.type, shape: [groups, 1] };
    const [mean, variance] = g.ops('Split', [used, g.ints(1, 1)], [column, column], { axis: 1 }) as [
      Value,
      Value,
    ];
    const deviation = g.op('Sqrt', [add(g, variance, g.constant(Float32Array.of(EPSILON), [1]))], variance);
    const byGroup = (value: Value): Value => reshape(g, value, [groups, -1], [groups, channels / groups]);
    const scale = g.op('Div', [byGroup(weight), deviation], byGroup(weight));
    const shift = g.op('Sub', [byGroup(bias), mul(g, scale, mean)], scale);
    const perChannel = (value: Value): Value => reshape(g, value, [channels, 1, 1], [channels, 1, 1]);
    return add(g, mul(g, x, perChannel(scale)), perChannel(shift));
  }

  /** Mean and variance of the groups [groups, 2] in the part of x that the tile answers for. */
  #own(x: Value, perLatent: number): Value {
    const g = this.#g;
    const bands = this.#groups % BANDS === 0 ? BANDS : 1;
    const at = (latents: Value): Value => mul(g, latents, g.ints(perLatent));
    const [begin, end] = [at(this.#begin), at(this.#end)];
    const found = Array.from({ length: bands }, (_, band) => this.#ofBand(x, band, bands, begin, end));
    return bands === 1 ? found[0]! : concat(g, found, 0);
  }

  #ofBand(x: Value, band: number, bands: number, begin: Value, end: Value): Value {
    const g = this.#g;
    const channels = (x.shape[1] as number) / bands;
    const groups = this.#groups / bands;
    const corner = (channel: number, place: Value): Value =>
      g.op('Concat', [g.ints(channel), place], { type: 'int64', shape: [3] }, { axis: 0 });
    const corners = [corner(band * channels, begin), corner((band + 1) * channels, end)];
    const part = g.op('Slice', [x, ...corners, g.ints(1, 2, 3)], {
      type: x.type,
      shape: [1, channels, 'rows', 'columns'],
    });
    const grouped = reshape(g, part, [groups, -1], [groups, 'group']);
    const column = { type: x.type, shape: [groups, 1] };
    const mean = g.op('ReduceMean', [grouped, g.ints(1)], column, { keepdims: 1 });
    const centred = g.op('Sub', [grouped, mean], grouped);
    const sum = g.op('ReduceSumSquare', [centred, g.ints(1)], column, { keepdims: 1 });
    const size = g.op('Shape', [grouped], { type: 'int64', shape: [1] }, { start: 1, end: 2 });
    const count = g.op('Cast', [size], { type: 'float32', shape: [1] }, { to: ELEMENT_TYPES.float32 });
    return concat(g, [mean, g.op('Div', [sum, count], column)], 1);
  }

  /** Adds the output `collected`; to be called once all norms are in the graph. */
  publish(): void {
    const shape = [this.count, this.#groups, 2];
    const all = this.#g.op('Concat', this.#collected, { type: 'float32', shape }, { axis: 0 });
    this.#g.output('collected', all);
  }
}

/** Mean and variance of parts of a picture, pooled to those of all of them. */
export class PooledStatistics {
  readonly #sums: Float64Array;
  readonly #squares: Float64Array;
  #area = 0;

  constructor(length: number) {
    this.#sums = new Float64Array(length / 2);
    this.#squares = new Float64Array(length / 2);
  }

  /** @param statistics [..., 2]: mean, variance of a part of the given area */
  add(statistics: Float32Array, area: number): void {
    for (let i = 0; i < this.#sums.length; i++) {
      const mean = statistics[2 * i]!;
      this.#sums[i]! += area * mean;
      this.#squares[i]! += area * (statistics[2 * i + 1]! + mean * mean);
    }
    this.#area += area;
  }

  /** Mean, variance of all parts. */
  result(): Float32Array {
    return Float32Array.from({ length: 2 * this.#sums.length }, (_, i) => {
      const mean = this.#sums[i >> 1]! / this.#area;
      return i % 2 === 0 ? mean : Math.max(this.#squares[i >> 1]! / this.#area - mean * mean, 0);
    });
  }
}

/** How far two sets of statistics are apart: the largest change of a normalised value of size one. */
export function distance(a: Float32Array, b: Float32Array): number {
  let most = 0;
  for (let i = 0; i < a.length; i += 2) {
    const deviation = Math.sqrt(b[i + 1]! + EPSILON);
    const shift = Math.abs(a[i]! - b[i]!) / deviation;
    const scale = Math.abs(Math.sqrt(a[i + 1]! + EPSILON) / deviation - 1);
    most = Math.max(most, shift, scale);
  }
  return most;
}
