import type { Deltas } from '../lora/compose.ts';
import type { LoraDelta } from '../lora/types.ts';
import type { Feed } from '../runtime/session.ts';
import type { Dim, GraphBuilder, Value } from './builder.ts';
import { Linears } from './linears.ts';
import { geluTanh, linear, linearOnto } from './ops.ts';
import type { ComputeType, Weights } from './weights.ts';

/** Modules that are applied to the same value. */
export interface LoraGroup {
  paths: readonly string[];
  inFeatures: number;
  /** Of each module. */
  outFeatures: readonly number[];
}

/** A LoRA and how strongly it acts. */
export interface WeightedDeltas {
  deltas: Deltas;
  weight: number;
}

/** Ranks are padded to a multiple of this: tensor cores take eight halves at a time. */
const RANK_MULTIPLE = 8;

interface GroupValues {
  paths: readonly string[];
  down: Value;
  ones: Value;
  ups: Value[];
}

/** A matrix among the inputs: `down` of a group, or `up` of one of its modules. */
interface Piece {
  group: number;
  /** Index in the group; null for `down`. */
  module: number | null;
  width: number;
}

function pieces(groups: readonly LoraGroup[]): Piece[] {
  return groups.flatMap(({ inFeatures, outFeatures }, group): Piece[] => [
    { group, module: null, width: inFeatures },
    ...outFeatures.map((width, module) => ({ group, module, width })),
  ]);
}

/** Pieces by width, in the order in which their rows lie in the input of that width. */
function byWidth(groups: readonly LoraGroup[]): [width: number, pieces: Piece[]][] {
  return [...Map.groupBy(pieces(groups), ({ width }) => width)];
}

/**
 * The LoRAs of all modules of a graph in a few inputs, since each input costs time of its own. For every width w:
 *
 *   lora:<w> [rows, w], the matrices of that width one below the other, and lora:<w>.rows int64 [matrices]
 *
 * A group has one `down` [modules * rank, in], a block of rows per module, and each of its modules an `up` [rank, out].
 * lora:ones [sum of modules * rank] and lora:ones.rows int64 [groups] are cut likewise: h = x downᵀ + ones is
 * [T, modules * rank]. The bias of a module is the last row of its `up`, against a column of ones in h: what a module
 * adds to its product is then one product of small rank, x Wᵀ + h up, where a bias costs another pass over the result.
 */
export class DeviceLora {
  /** By module. */
  readonly #groups: ReadonlyMap<string, GroupValues>;

  /**
   * @param prefix of the inputs' names, 'lora' above
   * @param g gets the inputs
   * @param body gets the nodes that cut them, so that runs of other bodies do not pay for it
   */
  constructor(
    prefix: string,
    g: GraphBuilder,
    body: GraphBuilder,
    groups: readonly LoraGroup[],
    compute: ComputeType,
  ) {
    const rank = (group: number): string => `${prefix}:rank:${group}`;
    const all = (group: number): string => `${groups[group]!.paths.length}*${rank(group)}`;
    const cut = (name: string, shape: readonly Dim[], results: (readonly Dim[])[]): Value[] => {
      const whole = g.input(`${prefix}:${name}`, compute, shape);
      const rows = g.input(`${prefix}:${name}.rows`, 'int64', [results.length]);
      const parts = results.map((result) => ({ type: compute, shape: result }));
      return body.ops('Split', [whole, rows], parts, { axis: 0 });
    };
    const values = new Map<string, Value>();
    for (const [width, list] of byWidth(groups)) {
      const shapes = list.map(({ group, module }) => [module === null ? all(group) : rank(group), width]);
      const parts = cut(`${width}`, [`${prefix}:${width}`, width], shapes);
      list.forEach(({ group, module }, i) => values.set(`${group} ${module}`, parts[i]!));
    }
    const ones = cut(
      'ones',
      [`${prefix}:ones`],
      groups.map((_, group) => [all(group)]),
    );
    this.#groups = new Map(
      groups.flatMap(({ paths }, group) => {
        const found: GroupValues = {
          paths,
          down: values.get(`${group} null`)!,
          ones: ones[group]!,
          ups: paths.map((_, module) => values.get(`${group} ${module}`)!),
        };
        return paths.map((path): [string, GroupValues] => [path, found]);
      }),
    );
  }

  /** The groups of those modules that have one. @throws Error when a group is to be applied in part */
  groupsOf(paths: readonly string[]): GroupValues[] {
    const found = new Set(paths.flatMap((path) => this.#groups.get(path) ?? []));
    for (const group of found)
      if (!group.paths.every((path) => paths.includes(path)))
        throw new Error(`${group.paths.join(', ')} share a LoRA input and are not applied together`);
    return [...found];
  }
}

/** Linears whose GELU takes the bias along, which saves a pass over the widest value of a block. */
export class DevicePlainLinears extends Linears {
  readonly #graph: GraphBuilder;

  constructor(graph: GraphBuilder, weights: Weights) {
    super(graph, weights);
    this.#graph = graph;
  }

  override applyGelu(x: Value, path: string): Value {
    const y = linear(this.#graph, x, this.weights.get(`${path}.weight`), null);
    const bias = this.weights.has(`${path}.bias`) ? this.weights.get(`${path}.bias`) : null;
    return this.#graph.op('FastGelu', [y, bias], y, {}, 'com.microsoft');
  }
}

/** Linears of which those of a {@link DeviceLora} take their LoRA from it. */
export class DeviceLinears extends DevicePlainLinears {
  readonly #graph: GraphBuilder;
  readonly #lora: DeviceLora;

  constructor(graph: GraphBuilder, weights: Weights, lora: DeviceLora) {
    super(graph, weights);
    this.#graph = graph;
    this.#lora = lora;
  }

  override apply(x: Value, path: string): Value {
    return this.applyAll(x, [path])[0]!;
  }

  override applyGelu(x: Value, path: string): Value {
    return this.applyAll(x, [path], path)[0]!;
  }

  override applyAll(x: Value, paths: readonly string[], gelu?: string): Value[] {
    const added = new Map(this.#lora.groupsOf(paths).flatMap((group) => this.#changes(x, group)));
    return paths.map((path) => {
      const change = added.get(path);
      if (!change) return path === gelu ? super.applyGelu(x, path) : super.apply(x, path);
      const y = linearOnto(this.#graph, x, this.weights.get(`${path}.weight`), change);
      return path === gelu ? geluTanh(this.#graph, y) : y;
    });
  }

  /** What the LoRAs of a group, and the biases, add to each of its modules' products. */
  #changes(x: Value, { paths, down, ones, ups }: GroupValues): [path: string, change: Value][] {
    const g = this.#graph;
    const tokens = x.shape[0]!;
    const all = linear(g, x, down, ones);
    const parts = ups.map((up) => ({ type: x.type, shape: [tokens, up.shape[0]!] }));
    const hidden =
      parts.length === 1 ? [all] : g.ops('Split', [all], parts, { axis: 1, num_outputs: parts.length });
    return paths.map((path, i) => {
      const shape = [tokens, ups[i]!.shape[1]!];
      return [path, g.op('MatMul', [hidden[i]!, ups[i]!], { type: x.type, shape })];
    });
  }
}

/**
 * The inputs of a graph with {@link DeviceLora}. Modules that no LoRA changes get their bias alone.
 * @param prefix of the inputs' names
 * @param parts their ranks are laid end to end; null gives inputs without any values, for a run that uses none
 * @param bias values of a module's bias [out]; null for a module without
 */
export function loraFeeds(
  prefix: string,
  groups: readonly LoraGroup[],
  parts: readonly WeightedDeltas[] | null,
  bias: (path: string) => Float32Array | null,
  compute: ComputeType,
): Record<string, Feed> {
  const active = (parts ?? []).filter(({ weight }) => weight !== 0);
  const ranks = groups.map(({ paths }) => (parts === null ? 0 : groupRank(paths, active)));
  const feeds: Record<string, Feed> = {};
  const add = (name: string, data: Values, width: readonly number[], rows: readonly number[]): void => {
    feeds[`${prefix}:${name}`] = { data, dims: [sum(rows), ...width] };
    feeds[`${prefix}:${name}.rows`] = { data: BigInt64Array.from(rows, BigInt), dims: [rows.length] };
  };
  for (const [width, list] of byWidth(groups)) {
    const rows = list.map(({ group, module }) =>
      module === null ? groups[group]!.paths.length * ranks[group]! : ranks[group]!,
    );
    const data = zeros(compute, sum(rows) * width);
    let at = 0;
    for (const [i, { group, module }] of list.entries()) {
      const { paths } = groups[group]!;
      const piece = data.subarray(at, (at += rows[i]! * width));
      if (module === null) fillDown(piece, paths, ranks[group]!, width, active);
      else fillUp(piece, paths[module]!, active, ranks[group]! > 0 ? bias(paths[module]!) : null);
    }
    add(`${width}`, data, [width], rows);
  }
  const rows = groups.map(({ paths }, i) => paths.length * ranks[i]!);
  const ones = zeros(compute, sum(rows));
  let at = 0;
  groups.forEach(({ paths }, i) => paths.forEach(() => (ones[(at += ranks[i]!) - 1] = 1)));
  add('ones', ones, [], rows);
  return feeds;
}

/** [modules * rank, in]: the rows of each module's LoRAs, in the order of `parts`. */
function fillDown(
  piece: Values,
  paths: readonly string[],
  rank: number,
  width: number,
  parts: readonly WeightedDeltas[],
): void {
  for (const [p, path] of paths.entries()) {
    let at = p * rank * width;
    for (const { deltas } of parts) {
      const delta = deltas.get(path);
      if (!delta) continue;
      piece.set(matrices(delta, piece).down, at);
      at += delta.rank * width;
    }
  }
}

/** [rank, out]: the rows of a module's LoRAs times their weights, and its bias as the last row. */
function fillUp(
  piece: Values,
  path: string,
  parts: readonly WeightedDeltas[],
  bias: Float32Array | null,
): void {
  let at = 0;
  for (const { deltas, weight } of parts) {
    const delta = deltas.get(path);
    if (!delta) continue;
    const { up } = matrices(delta, piece);
    if (weight === 1) piece.set(up, at);
    else for (let i = 0; i < up.length; i++) piece[at + i] = up[i]! * weight;
    at += up.length;
  }
  if (bias) piece.set(bias, piece.length - bias.length);
}

/** The largest rank of the group's modules and one for the bias. */
function groupRank(paths: readonly string[], parts: readonly WeightedDeltas[]): number {
  const rankOf = (path: string): number => sum(parts.map(({ deltas }) => deltas.get(path)?.rank ?? 0));
  return Math.ceil((Math.max(...paths.map(rankOf)) + 1) / RANK_MULTIPLE) * RANK_MULTIPLE;
}

type Values = Float16Array | Float32Array;

function zeros(compute: ComputeType, size: number): Values {
  return compute === 'float16' ? new Float16Array(size) : new Float32Array(size);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

/** Both matrices of a LoRA's module in another type, `up` with a row per rank. */
interface DeviceMatrices {
  down: Values;
  up: Values;
}

/** Made once per LoRA, since jobs use one again and again. */
const halves = new WeakMap<LoraDelta, DeviceMatrices>();
const floats = new WeakMap<LoraDelta, DeviceMatrices>();

/** @param like an array of the type wanted */
function matrices(delta: LoraDelta, like: Values): DeviceMatrices {
  const known = like instanceof Float16Array ? halves : floats;
  let found = known.get(delta);
  if (!found) {
    const { rank, outFeatures, down, up } = delta;
    const make = (size: number): Values =>
      like instanceof Float16Array ? new Float16Array(size) : new Float32Array(size);
    found = { down: make(down.length), up: make(up.length) };
    found.down.set(down);
    for (let out = 0, from = 0; out < outFeatures; out++)
      for (let r = 0; r < rank; r++) found.up[r * outFeatures + out] = up[from++]!;
    known.set(delta, found);
  }
  return found;
}
