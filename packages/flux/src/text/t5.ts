import type { T5Spec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { add, attention, gather, geluTanh, mul, reshape, rmsNorm, transpose } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import type { Feed } from '../runtime/session.ts';

/**
 * The T5 (v1.1) encoder: ids int64 [T] and buckets int64 [T, T] ({@link relativeBuckets}) -> hidden [T, modelDim].
 * No mask: FLUX lets padding tokens be attended to. Logits are not scaled, and heads * headDim may differ from modelDim.
 * Source: `T5EncoderModel` of transformers.
 */
export function buildT5(spec: T5Spec, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('t5');
  const weights = new GraphWeights(g, locator);
  const linears = new Linears(g, weights);
  const ids = g.input('ids', 'int64', ['T']);
  const buckets = g.input('buckets', 'int64', ['T', 'T']);
  const norm = (x: Value, path: string): Value =>
    rmsNorm(g, x, weights.get(`${path}.weight`), spec.layerNormEps);

  const bias = positionBias(g, weights.get(RELATIVE_BIAS), buckets);
  let x = gather(g, weights.get('shared.weight'), ids);
  for (let i = 0; i < spec.layers; i++) {
    const path = `encoder.block.${i}`;
    const attn = `${path}.layer.0.SelfAttention`;
    const normed = norm(x, `${path}.layer.0.layer_norm`);
    const [q, k, v] = ['q', 'k', 'v'].map((name) => linears.apply(normed, `${attn}.${name}`)) as [
      Value,
      Value,
      Value,
    ];
    const attended = attention(g, q, k, v, { heads: spec.numHeads, scale: 1, bias });
    x = add(g, x, linears.apply(attended, `${attn}.o`));
    const dense = `${path}.layer.1.DenseReluDense`;
    const inner = norm(x, `${path}.layer.1.layer_norm`);
    const gate = geluTanh(g, linears.apply(inner, `${dense}.wi_0`));
    x = add(g, x, linears.apply(mul(g, gate, linears.apply(inner, `${dense}.wi_1`)), `${dense}.wo`));
  }
  g.output('hidden', norm(x, 'encoder.final_layer_norm'));
  return g.build();
}

/** The table that the bias of every layer comes from, [relativeBuckets, numHeads]. */
export const RELATIVE_BIAS = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight';

/** What is added to the logits, [1, heads, T, T], from a table [buckets, heads] and the bucket of each pair [T, T]. */
export function positionBias(g: GraphBuilder, table: Value, buckets: Value): Value {
  const heads = table.shape[1] as number;
  const perHead = transpose(g, gather(g, table, buckets), [2, 0, 1]);
  return reshape(g, perHead, [1, heads, 0, -1], [1, heads, 'T', 'T']);
}

/** The input `buckets` of the graphs, int64 [tokens, tokens]. */
export function bucketFeed(tokens: number, spec: T5Spec): Feed {
  const data = relativeBuckets(tokens, spec.relativeBuckets, spec.relativeMaxDistance);
  return { data, dims: [tokens, tokens] };
}

/**
 * Bucket of the relative position key - query for every pair of tokens, row = query: [tokens, tokens].
 * Half of the buckets are for either direction; of these half are exact, the rest grow logarithmically.
 * Source: `_relative_position_bucket(bidirectional=True)` of transformers, with its fp32 logarithms.
 */
export function relativeBuckets(tokens: number, numBuckets: number, maxDistance: number): BigInt64Array {
  const half = numBuckets / 2;
  const exact = Math.floor(half / 2);
  const span = Math.fround(Math.log(maxDistance / exact));
  const bucket = (distance: number): number => {
    if (distance < exact) return distance;
    const ratio = Math.fround(Math.fround(Math.log(Math.fround(distance / exact))) / span);
    return Math.min(exact + Math.trunc(Math.fround(ratio * (half - exact))), half - 1);
  };
  const byDistance = Array.from({ length: tokens }, (_, distance) => bucket(distance));
  const out = new BigInt64Array(tokens * tokens);
  for (let query = 0; query < tokens; query++)
    for (let key = 0; key < tokens; key++)
      out[query * tokens + key] = BigInt(byDistance[Math.abs(key - query)]! + (key > query ? half : 0));
  return out;
}
