import type { Deltas } from '../lora/compose.ts';
import type { LoraDelta } from '../lora/types.ts';
import type { Feed } from '../runtime/session.ts';
import type { GraphBuilder, Value } from './builder.ts';
import { Linears } from './linears.ts';
import { linear } from './ops.ts';
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
  down: Value;
  ones: Value;
  ups: Value[];
}

/**
 * The LoRAs of all modules of a graph as its inputs, those of modules with one operand together:
 *
 *   lora:<group>.down [modules * rank, in], a block of rows per module; lora:<path>.up [rank, out] per module;
 *   lora:ones [sum of modules * rank] and lora:ranks int64 [groups], its length per group
 *
 * h = x downᵀ + ones is [T, modules * rank]. The bias of a module is the last row of its `up`, against a column of
 * ones in h: what a module adds to its product is then one product of small rank, x Wᵀ + h up, where a bias of its own
 * costs another pass over the result.
 */
export class DeviceLora {
  readonly #groups: ReadonlyMap<string, GroupValues>;

  constructor(g: GraphBuilder, groups: readonly LoraGroup[], compute: ComputeType) {
    const all = g.input('lora:ones', compute, ['lora:ones']);
    const ranks = g.input('lora:ranks', 'int64', [groups.length]);
    const widths = groups.map((_, i) => ({ type: compute, shape: [`rank:${i}`] }));
    const ones = g.ops('Split', [all, ranks], widths, { axis: 0 });
    this.#groups = new Map(
      groups.map(({ paths, inFeatures, outFeatures }, i) => [
        paths.join(),
        {
          down: g.input(`lora:${i}.down`, compute, [`rank:${i}`, inFeatures]),
          ones: ones[i]!,
          ups: paths.map((path, p) =>
            g.input(`lora:${path}.up`, compute, [`rank:${i}/${paths.length}`, outFeatures[p]!]),
          ),
        },
      ]),
    );
  }

  /** @throws Error for a group that the graph was not built with */
  group(paths: readonly string[]): GroupValues {
    const group = this.#groups.get(paths.join());
    if (!group) throw new Error(`no LoRA group of ${paths.join(', ')}`);
    return group;
  }
}

/** Linears that all take a LoRA from a {@link DeviceLora}. */
export class DeviceLinears extends Linears {
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

  override applyAll(x: Value, paths: readonly string[]): Value[] {
    const g = this.#graph;
    const { down, ones, ups } = this.#lora.group(paths);
    const tokens = x.shape[0]!;
    const all = linear(g, x, down, ones);
    const parts = ups.map((up) => ({ type: x.type, shape: [tokens, up.shape[0]!] }));
    const hidden =
      parts.length === 1 ? [all] : g.ops('Split', [all], parts, { axis: 1, num_outputs: parts.length });
    return paths.map((path, i) => {
      const shape = [tokens, ups[i]!.shape[1]!];
      const added = g.op('MatMul', [hidden[i]!, ups[i]!], { type: x.type, shape });
      return g.op('Gemm', [x, this.weights.get(`${path}.weight`), added], added, { transB: 1 });
    });
  }
}

/**
 * The inputs of a graph with {@link DeviceLora}. Modules that no LoRA changes get their bias alone.
 * @param parts their ranks are laid end to end; null gives inputs without any values, for a run that uses none
 * @param bias values of a module's bias [out]; null for a module without
 */
export function loraFeeds(
  groups: readonly LoraGroup[],
  parts: readonly WeightedDeltas[] | null,
  bias: (path: string) => Float32Array | null,
  compute: ComputeType,
): Record<string, Feed> {
  const feeds: Record<string, Feed> = {};
  const widths: number[] = [];
  const ones: Float32Array[] = [];
  for (const [i, { paths, inFeatures, outFeatures }] of groups.entries()) {
    const rank = parts === null ? 0 : groupRank(paths, parts);
    const down = zeros(compute, paths.length * rank * inFeatures);
    const one = new Float32Array(paths.length * rank);
    paths.forEach((path, p) => {
      const out = outFeatures[p]!;
      const up = zeros(compute, rank * out);
      let row = 0;
      for (const { deltas, weight } of parts ?? []) {
        const delta = deltas.get(path);
        if (!delta || weight === 0) continue;
        const halves = matrices(delta, compute);
        down.set(halves.down, (p * rank + row) * inFeatures);
        place(up, halves.up, row * out, weight);
        row += delta.rank;
      }
      const offset = rank > 0 ? bias(path) : null;
      if (offset) up.set(offset, (rank - 1) * out);
      if (rank > 0) one[(p + 1) * rank - 1] = 1;
      feeds[`lora:${path}.up`] = { data: up, dims: [rank, out] };
    });
    feeds[`lora:${i}.down`] = { data: down, dims: [paths.length * rank, inFeatures] };
    widths.push(one.length);
    ones.push(one);
  }
  const all = zeros(
    compute,
    widths.reduce((sum, width) => sum + width, 0),
  );
  let at = 0;
  for (const one of ones) {
    all.set(one, at);
    at += one.length;
  }
  feeds['lora:ones'] = { data: all, dims: [all.length] };
  feeds['lora:ranks'] = { data: BigInt64Array.from(widths, BigInt), dims: [widths.length] };
  return feeds;
}

/** The largest rank of the group's modules and one for the bias. */
function groupRank(paths: readonly string[], parts: readonly WeightedDeltas[]): number {
  const rankOf = (path: string): number =>
    parts.reduce((sum, { deltas, weight }) => sum + (weight === 0 ? 0 : (deltas.get(path)?.rank ?? 0)), 0);
  return Math.ceil((Math.max(...paths.map(rankOf)) + 1) / RANK_MULTIPLE) * RANK_MULTIPLE;
}

type Values = Float16Array | Float32Array;

const zeros = (compute: ComputeType, size: number): Values =>
  compute === 'float16' ? new Float16Array(size) : new Float32Array(size);

/** Both matrices in the compute type, `up` with a row per rank; made once per LoRA, since jobs use one again and again. */
interface DeviceMatrices {
  down: Values;
  up: Values;
}

const known = {
  float16: new WeakMap<LoraDelta, DeviceMatrices>(),
  float32: new WeakMap<LoraDelta, DeviceMatrices>(),
};

function matrices(delta: LoraDelta, compute: ComputeType): DeviceMatrices {
  let found = known[compute].get(delta);
  if (!found) {
    const { rank, outFeatures } = delta;
    const down = zeros(compute, delta.down.length);
    down.set(delta.down);
    const up = zeros(compute, delta.up.length);
    for (let r = 0; r < rank; r++)
      for (let out = 0; out < outFeatures; out++) up[r * outFeatures + out] = delta.up[out * rank + r]!;
    known[compute].set(delta, (found = { down, up }));
  }
  return found;
}

function place(into: Values, values: Values, at: number, weight: number): void {
  if (weight === 1) into.set(values, at);
  else for (let i = 0; i < values.length; i++) into[at + i] = values[i]! * weight;
}
