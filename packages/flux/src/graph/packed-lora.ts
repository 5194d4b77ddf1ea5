import type { Deltas } from '../lora/compose.ts';
import type { Feed } from '../runtime/session.ts';
import type { GraphBuilder, Value } from './builder.ts';
import { Linears } from './linears.ts';
import { linear, linearOnto, reshape } from './ops.ts';
import type { ComputeType, Weights } from './weights.ts';

/** Modules that are applied to the same value. */
export interface LoraGroup {
  paths: readonly string[];
  inFeatures: number;
  /** Of each module. */
  outFeatures: readonly number[];
}

/** Ranks are padded to a multiple of this: tensor cores take eight halves at a time. */
const RANK_MULTIPLE = 8;

/** One group as values: h = x downᵀ + ones is [T, modules * rank], a column block of h per module. */
interface GroupValues {
  down: Value;
  ones: Value;
  ups: Value[];
}

/**
 * The LoRA of every module of a graph in one input, because each input costs a copy to the device of its own:
 *
 *   lora [N], laid out group by group: down [modules * rank, in], ones [modules * rank], up [out, rank] per module
 *   lora_sizes int64 [pieces]: elements of each piece
 *
 * The bias of a module travels as the last column of its `up`, against a column of ones in h: what a module adds to
 * its product is then one product, x Wᵀ + (h upᵀ), instead of a bias and a product.
 */
export class PackedLora {
  readonly #groups: ReadonlyMap<string, GroupValues>;

  constructor(g: GraphBuilder, groups: readonly LoraGroup[], compute: ComputeType) {
    const packed = g.input('lora', compute, ['lora']);
    const sizes = g.input('lora_sizes', 'int64', [pieceCount(groups)]);
    const pieces = g.ops(
      'Split',
      [packed, sizes],
      Array.from({ length: pieceCount(groups) }, () => ({ type: compute, shape: ['piece'] })),
      { axis: 0 },
    );
    const next = (): Value => pieces.shift()!;
    this.#groups = new Map(
      groups.map(({ paths, inFeatures, outFeatures }, i) => {
        const rank = `rank:${i}`;
        const all = paths.length === 1 ? rank : `${paths.length}*${rank}`;
        const down = reshape(g, next(), [-1, inFeatures], [all, inFeatures]);
        const ones = next();
        const ups = outFeatures.map((out) => reshape(g, next(), [out, -1], [out, rank]));
        return [paths.join(), { down, ones, ups }];
      }),
    );
  }

  /** @throws Error for a group that the graph was not built with */
  group(paths: readonly string[]): GroupValues {
    const group = this.#groups.get(paths.join());
    if (!group) throw new Error(`no LoRA group of ${paths.join(', ')}`);
    return group;
  }
}

/** Linears that all take a LoRA from a {@link PackedLora}. */
export class PackedLinears extends Linears {
  readonly #graph: GraphBuilder;
  readonly #lora: PackedLora;

  constructor(graph: GraphBuilder, weights: Weights, lora: PackedLora) {
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
    const all = g.op(
      'Gemm',
      [x, down, ones],
      { type: x.type, shape: [x.shape[0]!, down.shape[0]!] },
      { transB: 1 },
    );
    const hidden =
      paths.length === 1
        ? [all]
        : g.ops(
            'Split',
            [all],
            ups.map((up) => ({ type: x.type, shape: [x.shape[0]!, up.shape[1]!] })),
            { axis: 1, num_outputs: paths.length },
          );
    return paths.map((path, i) =>
      linearOnto(g, x, this.weights.get(`${path}.weight`), linear(g, hidden[i]!, ups[i]!, null)),
    );
  }
}

/**
 * The inputs of a graph with a {@link PackedLora}; modules that `deltas` lacks are left unchanged.
 * @param bias values of the module's bias [out]; null for a module without
 */
export function packLora(
  groups: readonly LoraGroup[],
  deltas: Deltas,
  bias: (path: string) => Float32Array | null,
  compute: ComputeType,
): { lora: Feed; lora_sizes: Feed } {
  const ranks = groups.map(({ paths }) => {
    const rank = Math.max(...paths.map((path) => deltas.get(path)?.rank ?? 0));
    return Math.ceil((rank + 1) / RANK_MULTIPLE) * RANK_MULTIPLE;
  });
  const sizes = groups.flatMap(({ paths, inFeatures, outFeatures }, i) => {
    const rank = ranks[i]!;
    return [paths.length * rank * inFeatures, paths.length * rank, ...outFeatures.map((out) => out * rank)];
  });
  const size = sizes.reduce((sum, piece) => sum + piece, 0);
  const lora = compute === 'float16' ? new Float16Array(size) : new Float32Array(size);
  let at = 0;
  groups.forEach(({ paths, inFeatures, outFeatures }, i) => {
    const rank = ranks[i]!;
    paths.forEach((path, p) => {
      const delta = deltas.get(path);
      if (delta) lora.set(delta.down, at + p * rank * inFeatures);
    });
    at += paths.length * rank * inFeatures;
    for (let p = 1; p <= paths.length; p++) lora[at + p * rank - 1] = 1;
    at += paths.length * rank;
    paths.forEach((path, p) => {
      const out = outFeatures[p]!;
      const up = lora.subarray(at, at + out * rank);
      fillColumns(up, rank, 0, deltas.get(path)?.up);
      fillColumns(up, rank, rank - 1, bias(path) ?? undefined);
      at += out * rank;
    });
  });
  return {
    lora: { data: lora, dims: [lora.length] },
    lora_sizes: { data: BigInt64Array.from(sizes, BigInt), dims: [sizes.length] },
  };
}

/** Puts `columns` [rows, n] into a matrix [rows, width] from column `first` on. */
function fillColumns(
  matrix: Float16Array | Float32Array,
  width: number,
  first: number,
  columns: Float32Array | undefined,
): void {
  if (!columns) return;
  const n = columns.length / (matrix.length / width);
  for (let from = 0, to = first; from < columns.length; to += width - n)
    for (let i = 0; i < n; i++) matrix[to++] = columns[from++]!;
}

function pieceCount(groups: readonly LoraGroup[]): number {
  return groups.reduce((sum, { paths }) => sum + 2 + paths.length, 0);
}
