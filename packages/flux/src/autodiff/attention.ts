import type { GraphBuilder, Value } from '../graph/builder.ts';
import { concat, mul, reshape, split, transpose } from '../graph/ops.ts';
import type { RuleContext } from './backward.ts';

/** Heads whose probabilities exist at once: the backward pass holds some S x S values for each. */
const HEADS_AT_ONCE = 4;

/** Columns added to the width of a head: one is needed, and tensor cores take eight halves at a time. */
const COLUMNS = 8;

/**
 * Gradient of softmax(q kᵀ s) v without mask or bias, the probabilities computed anew and for a few heads at a time,
 * so that no S x S tensor of all heads exists:
 * dv = pᵀ do; dl = p (do vᵀ - Σ do o); dq = s dl k; dk = s dlᵀ q.
 *
 * Time goes into passes over S x S values, not into the products: the row sums Σ dp p are those of do o (as in
 * FlashAttention, Dao et al. 2022), a column -Σ do o of `do` against one of ones in v subtracts them inside the
 * product, and transposed operands are read as they lie.
 */
export function attentionRule({ g, node, gradients }: RuleContext): (Value | null)[] {
  const [q, k, v, ...rest] = node.inputs as [Value, Value, Value, ...(Value | null)[]];
  if (rest.some(Boolean) || node.attributes['unidirectional'])
    throw new Error('attention with a mask or a bias has no derivative');
  const heads = node.attributes['num_heads'] as number;
  const width = q.shape[2] as number;
  const headDim = width / heads;
  const given = node.attributes['scale'] as { float: number } | undefined;
  const factor = given?.float ?? 1 / Math.sqrt(headDim);
  const sizes: number[] = [];
  for (let left = heads; left > 0; left -= HEADS_AT_ONCE) sizes.push(Math.min(left, HEADS_AT_ONCE));

  const apart = (x: Value): Value => reshape(g, x, [-1, heads, headDim], [x.shape[1]!, heads, headDim]);
  /** [S, heads, any] -> one [heads in the chunk, S, any] per chunk. */
  const byHead = (x: Value): Value[] => {
    const turned = transpose(g, x, [1, 0, 2]);
    return sizes.length === 1 ? [turned] : split(g, turned, 0, sizes);
  };
  const [d, o] = [apart(gradients[0]!), apart(node.outputs[0]!)];
  const [dWide, vWide] = centring(g, d, o, apart(v));
  const [qs, ks, ds] = [byHead(apart(q)), byHead(apart(k)), byHead(d)];
  const [dWides, vWides] = [byHead(dWide), byHead(vWide)];
  const results = qs.map((qi, i) => chunkGradient(g, qi, ks[i]!, ds[i]!, dWides[i]!, vWides[i]!, factor));
  const joined = results.length === 1 ? results[0]! : concat(g, results, 0);
  const parts = split(g, transpose(g, joined, [1, 0, 2]), 2, [headDim, headDim, headDim]);
  return [
    ...[q, k, v].map((like, i) => reshape(g, parts[i]!, [1, -1, width], like.shape)),
    ...rest.map(() => null),
  ];
}

/** d and v with further columns, such that the product of a row of one with a row of the other is d vᵀ - Σ d o. */
function centring(g: GraphBuilder, d: Value, o: Value, v: Value): [Value, Value] {
  const block = (...values: number[]): Value =>
    g.constant(o.type === 'float16' ? Float16Array.from(values) : Float32Array.from(values), [1, 1, COLUMNS]);
  const shape = [...o.shape.slice(0, -1), 1];
  const sums = g.op('ReduceSum', [mul(g, d, o), g.ints(-1)], { type: o.type, shape }, { keepdims: 1 });
  const ones = block(...Array<number>(COLUMNS).fill(1));
  const size = g.op('Shape', [sums], { type: 'int64', shape: [3] });
  const beside = g.op('Expand', [ones, size], { type: v.type, shape: [...shape.slice(0, -1), COLUMNS] });
  const first = block(-1, ...Array<number>(COLUMNS - 1).fill(0));
  return [concat(g, [d, mul(g, sums, first)], 2), concat(g, [v, beside], 2)];
}

/**
 * dq, dk and dv side by side, [heads, S, 3 headDim]. All operands are [heads, S, headDim], the wide ones with the
 * columns of {@link centring}.
 */
function chunkGradient(
  g: GraphBuilder,
  q: Value,
  k: Value,
  d: Value,
  dWide: Value,
  vWide: Value,
  factor: number,
): Value {
  const product = (a: Value, b: Value, options: { transA?: 1; transB?: 1; alpha?: number }): Value => {
    const { alpha = 1, ...transposed } = options;
    const shape = [a.shape[0]!, a.shape[options.transA ? 2 : 1]!, b.shape[options.transB ? 1 : 2]!];
    const attributes = { ...transposed, alpha: { float: alpha } };
    return g.op('FusedMatMul', [a, b], { type: a.type, shape }, attributes, 'com.microsoft');
  };
  const logits = product(q, k, { transB: 1, alpha: factor });
  const p = g.op('Softmax', [logits], logits, { axis: -1 });
  const dl = mul(g, p, product(dWide, vWide, { transB: 1 }));
  // In one value: a chunk is then done with, and its S x S values gone, before the next one begins.
  return concat(
    g,
    [
      product(dl, k, { alpha: factor }),
      product(dl, q, { transA: 1, alpha: factor }),
      product(p, d, { transA: 1 }),
    ],
    2,
  );
}
