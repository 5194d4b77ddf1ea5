import type { TransformerSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { add, concat, reshape, silu } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { modulationLayout, type ModulationSlot } from './modulation.ts';

/**
 * The part of the transformer that never sees an image token, run once per job:
 *
 *   time [N, 256], guidance [N, 256] (models with guidance only), pooled [N, pooledDim]  ->  modulation [N, M]
 *   text [T, jointDim]                                                                   ->  context [T, hidden]
 *
 * N is the number of denoising steps, of which all may share one row of guidance and one of pooled; M the size of {@link modulationLayout}. Holds 27 % of FLUX.1's parameters.
 * Source: `CombinedTimestepGuidanceTextProjEmbeddings` and the adaLN modules of diffusers.
 */
export function buildConditioner(
  spec: TransformerSpec,
  locator: WeightLocator,
  adapted?: ReadonlySet<string>,
): GraphModel {
  const g = new GraphBuilder('conditioner');
  const linears = new Linears(g, new GraphWeights(g, locator), adapted);
  const { activated, context } = embed(g, linears, spec);
  const { slots } = modulationLayout(spec);
  g.output(
    'modulation',
    concat(
      g,
      slots.map((slot) => modulate(g, linears, activated, slot, spec.hiddenSize)),
      1,
    ),
  );
  g.output('context', context);
  return g.build();
}

/** What all modulations are linear in, [N, hidden], and the text tokens at the width of the transformer, [T, hidden]. */
export function embed(
  g: GraphBuilder,
  linears: Linears,
  spec: TransformerSpec,
): { activated: Value; context: Value } {
  const mlp = (x: Value, path: string): Value =>
    linears.apply(
      silu(g, linears.apply(x, `time_text_embed.${path}.linear_1`)),
      `time_text_embed.${path}.linear_2`,
    );

  let embedding = mlp(g.input('time', 'float32', ['N', spec.timestepDim]), 'timestep_embedder');
  if (spec.guidanceEmbeds)
    embedding = add(
      g,
      embedding,
      mlp(g.input('guidance', 'float32', ['G', spec.timestepDim]), 'guidance_embedder'),
    );
  embedding = add(g, embedding, mlp(g.input('pooled', 'float32', ['P', spec.pooledDim]), 'text_embedder'));
  const text = g.input('text', 'float32', ['T', spec.jointDim]);
  return { activated: silu(g, embedding), context: linears.apply(text, 'context_embedder') };
}

/** One slot, [N, slot.size], with 1 added to its scales so that the token path can use them as they are. */
function modulate(g: GraphBuilder, linears: Linears, x: Value, slot: ModulationSlot, hidden: number): Value {
  const parts = slot.linears.map((path) => linears.apply(x, path));
  const flat = parts.length === 1 ? parts[0]! : concat(g, parts, 1);
  const ones = g.constant(
    Float32Array.from(slot.chunks, (chunk) => (chunk === 'scale' ? 1 : 0)),
    [slot.chunks.length, 1],
  );
  const chunked = reshape(g, flat, [0, slot.chunks.length, hidden], ['N', slot.chunks.length, hidden]);
  return reshape(g, add(g, chunked, ones), [0, slot.size], ['N', slot.size]);
}

/** Whether a module belongs to the conditioner; all others are of the token path. */
export function isConditionerModule(module: string): boolean {
  return /^(time_text_embed\.|context_embedder$|norm_out\.)|\.norm(1|1_context)?\.linear$/.test(module);
}
