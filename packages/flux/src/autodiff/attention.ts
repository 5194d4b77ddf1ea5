import type { GraphBuilder, Value } from '../graph/builder.ts';
import { concat, mul, reshape, split, transpose } from '../graph/ops.ts';
import type { RuleContext } from './backward.ts';

/** Heads whose probabilities exist at once: the backward pass holds some S x S values for each. */
const HEADS_AT_ONCE = 4;

/** That are added to the width of a head: one is needed, and tensor cores take eight halves at a time. */
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

  /** [1, S, heads * headDim] -> one [heads in the chunk, S, headDim] per chunk. */
  const byHead = (x: Value): Value[] => {
    const tokens = x.shape[1]!;
    const apart = reshape(g, x, [-1, heads, headDim], [tokens, heads, headDim]);
    const turned = transpose(g, apart, [1, 0, 2]);
    return sizes.length === 1 ? [turned] : split(g, turned, 0, sizes);
  };
  const together = (chunks: Value[], like: Value): Value => {
    const joined = chunks.length === 1 ? chunks[0]! : concat(g, chunks, 0);
    return reshape(g, transpose(g, joined, [1, 0, 2]), [1, -1, width], like.shape);
  };
  const [qs, ks, vs, ds, os] = [q, k, v, gradients[0]!, node.outputs[0]!].map(byHead) as [
    Value[],
    Value[],
    Value[],
    Value[],
    Value[],
  ];
  const results = qs.map((_, i) => chunkGradient(g, qs[i]!, ks[i]!, vs[i]!, ds[i]!, os[i]!, factor));
  return [
    together(
      results.map(({ dq }) => dq),
      q,
    ),
    together(
      results.map(({ dk }) => dk),
      k,
    ),
    together(
      results.map(({ dv }) => dv),
      v,
    ),
    ...rest.map(() => null),
  ];
}

/** All operands are [heads, S, headDim]. */
function chunkGradient(g: GraphBuilder, q: Value, k: Value, v: Value, d: Value, o: Value, factor: number) {
  const product = (a: Value, b: Value, options: { transA?: 1; transB?: 1; alpha?: number }): Value => {
    const { alpha = 1, ...transposed } = options;
    const shape = [a.shape[0]!, a.shape[options.transA ? 2 : 1]!, b.shape[options.transB ? 1 : 2]!];
    const attributes = { ...transposed, alpha: { float: alpha } };
    return g.op('FusedMatMul', [a, b], { type: a.type, shape }, attributes, 'com.microsoft');
  };
  const p = g.op('Softmax', [product(q, k, { transB: 1, alpha: factor })], squareOf(q), { axis: -1 });
  const column = [...o.shape.slice(0, -1), 1];
  const sums = g.op(
    'ReduceSum',
    [mul(g, d, o), g.ints(-1)],
    { type: o.type, shape: column },
    { keepdims: 1 },
  );
  const block = (...values: number[]): Value =>
    g.constant(o.type === 'float16' ? Float16Array.from(values) : Float32Array.from(values), [1, 1, COLUMNS]);
  const zeros = Array<number>(COLUMNS - 1).fill(0);
  const ones = block(...Array<number>(COLUMNS).fill(1));
  const rows = g.op('Shape', [sums], { type: 'int64', shape: [3] });
  const beside = [...column.slice(0, -1), COLUMNS];
  const dWide = concat(g, [d, mul(g, sums, block(-1, ...zeros))], 2);
  const vWide = concat(g, [v, g.op('Expand', [ones, rows], { type: v.type, shape: beside })], 2);
  const dl = mul(g, p, product(dWide, vWide, { transB: 1 }));
  return {
    dq: product(dl, k, { alpha: factor }),
    dk: product(dl, q, { transA: 1, alpha: factor }),
    dv: product(p, d, { transA: 1 }),
  };
}

function squareOf(x: Value): Pick<Value, 'type' | 'shape'> {
  return { type: x.type, shape: [x.shape[0]!, x.shape[1]!, x.shape[1]!] };
}
