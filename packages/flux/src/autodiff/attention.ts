import type { GraphBuilder, Value } from '../graph/builder.ts';
import { concat, mul, reshape, split, transpose } from '../graph/ops.ts';
import type { RuleContext } from './backward.ts';

/** Heads whose probabilities exist at once: the backward pass holds some S x S values for each. */
const HEADS_AT_ONCE = 4;

/**
 * Gradient of softmax(q kᵀ s) v without mask or bias, the probabilities computed anew and for a few heads at a time,
 * so that no S x S tensor of all heads exists:
 * dv = pᵀ do; dp = do vᵀ; dl = p (dp - Σ dp p); dq = s dl k; dk = s dlᵀ q.
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
  const scale = g.constant(q.type === 'float16' ? Float16Array.of(factor) : Float32Array.of(factor), []);
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
  const [qs, ks, vs, ds] = [q, k, v, gradients[0]!].map(byHead) as [Value[], Value[], Value[], Value[]];
  const results = qs.map((_, i) => chunkGradient(g, qs[i]!, ks[i]!, vs[i]!, ds[i]!, scale));
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

function chunkGradient(g: GraphBuilder, q: Value, k: Value, v: Value, d: Value, scale: Value) {
  const swapped = (x: Value): Value => transpose(g, x, [0, 2, 1]);
  const product = (a: Value, b: Value): Value =>
    g.op('MatMul', [a, b], { type: a.type, shape: [a.shape[0]!, a.shape[1]!, b.shape[2]!] });
  const scaledQ = mul(g, q, scale);
  const logits = product(scaledQ, swapped(k));
  const p = g.op('Softmax', [logits], logits, { axis: -1 });
  const dp = product(d, swapped(v));
  const weighted = mul(g, dp, p);
  const shape = [...weighted.shape.slice(0, -1), 1];
  const sum = g.op('ReduceSum', [weighted, g.ints(-1)], { type: p.type, shape }, { keepdims: 1 });
  const dl = g.op('Sub', [weighted, mul(g, p, sum)], p);
  return { dq: mul(g, product(dl, k), scale), dk: product(swapped(dl), scaledQ), dv: product(swapped(p), d) };
}
