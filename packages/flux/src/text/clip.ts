import type { ClipSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { add, attention, gather, geluErf, layerNorm, quickGelu, rows, rowCount } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';

/**
 * CLIP's text transformer: ids and positions int64 [T] -> hidden [T, hidden] (after the final norm) and
 * pooled [1, hidden], the last of the tokens given. Attention is causal, so a token depends on no later one: callers
 * end the sequence at the pooled token and padding costs nothing.
 * Source: `CLIPTextTransformer` of transformers.
 */
export function buildClip(spec: ClipSpec, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('clip');
  const weights = new GraphWeights(g, locator);
  const linears = new Linears(g, weights);
  const ids = g.input('ids', 'int64', ['T']);
  const positions = g.input('positions', 'int64', ['T']);
  const norm = (x: Value, path: string): Value =>
    layerNorm(g, x, weights.get(`${path}.weight`), weights.get(`${path}.bias`), spec.layerNormEps);

  const embeddings = 'text_model.embeddings';
  let x = add(
    g,
    gather(g, weights.get(`${embeddings}.token_embedding.weight`), ids),
    gather(g, weights.get(`${embeddings}.position_embedding.weight`), positions),
  );
  for (let i = 0; i < spec.layers; i++) {
    const path = `text_model.encoder.layers.${i}`;
    const normed = norm(x, `${path}.layer_norm1`);
    const [q, k, v] = ['q_proj', 'k_proj', 'v_proj'].map((name) =>
      linears.apply(normed, `${path}.self_attn.${name}`),
    ) as [Value, Value, Value];
    const attended = attention(g, q, k, v, { heads: spec.numHeads, causal: true });
    x = add(g, x, linears.apply(attended, `${path}.self_attn.out_proj`));
    const hidden = linears.apply(norm(x, `${path}.layer_norm2`), `${path}.mlp.fc1`);
    const activated = spec.activation === 'quick_gelu' ? quickGelu(g, hidden) : geluErf(g, hidden);
    x = add(g, x, linears.apply(activated, `${path}.mlp.fc2`));
  }
  const hidden = norm(x, 'text_model.final_layer_norm');
  g.output('hidden', hidden);
  const count = rowCount(g, hidden);
  g.output('pooled', rows(g, hidden, g.ints(-1), count, 1));
  return g.build();
}

/** Index of the token whose hidden state is CLIP's pooled output; 0 when there is no end token, as argmax gives. */
export function pooledIndex(ids: readonly number[], spec: Pick<ClipSpec, 'pooling' | 'eosTokenId'>): number {
  if (spec.pooling === 'highest_id') return ids.indexOf(Math.max(...ids));
  return Math.max(ids.indexOf(spec.eosTokenId), 0);
}
