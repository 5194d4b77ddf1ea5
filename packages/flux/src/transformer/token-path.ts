import type { TransformerSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { concat, layerNorm, splitRows } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { type BlockContext, doubleBlock, singleBlock } from './blocks.ts';
import { FINAL_CHUNKS, modulationLayout, RowModulation } from './modulation.ts';

/**
 * The part of the transformer that must stay resident: one denoising step.
 *
 *   latents [S, inChannels], context [T, hidden], modulation [M], cos and sin [T + S, headDim / 2]
 *     -> velocity [S, outChannels]
 *
 * S image tokens, T text tokens. `adapted` modules take a LoRA as further inputs; `probes` are published as further
 * outputs, for comparing inner activations with the reference: `double.<i>.img`, `double.<i>.txt`, `single.<i>`.
 */
export function buildTokenPath(
  spec: TransformerSpec,
  locator: WeightLocator,
  options: { adapted?: ReadonlySet<string>; probes?: readonly string[] } = {},
): GraphModel {
  const g = new GraphBuilder('token-path');
  const weights = new GraphWeights(g, locator);
  const linears = new Linears(g, weights, options.adapted);
  const latents = g.input('latents', 'float32', ['S', spec.inChannels]);
  const context = g.input('context', 'float32', ['T', spec.hiddenSize]);
  const row = g.input('modulation', 'float32', [modulationLayout(spec).size]);
  const cos = g.input('cos', 'float32', ['T+S', spec.headDim / 2]);
  const sin = g.input('sin', 'float32', ['T+S', spec.headDim / 2]);
  const ctx: BlockContext = { g, linears, spec, modulation: new RowModulation(g, row, spec), cos, sin };
  const probe = (name: string, value: Value): void => {
    if (options.probes?.includes(name)) g.output(name, value);
  };
  g.output('velocity', velocity(ctx, latents, context, probe));
  return g.build();
}

/** Velocity [S, outChannels] at latents [S, inChannels]; context [T, hidden] are the text tokens. */
export function velocity(
  ctx: BlockContext,
  latents: Value,
  context: Value,
  probe: (name: string, value: Value) => void = () => {},
): Value {
  const { g, linears, spec } = ctx;
  let img = linears.apply(latents, 'x_embedder');
  let txt = context;
  for (let i = 0; i < spec.doubleBlocks; i++) {
    ({ img, txt } = doubleBlock(ctx, i, img, txt));
    probe(`double.${i}.img`, img);
    probe(`double.${i}.txt`, txt);
  }
  let joint = concat(g, [txt, img], 0);
  for (let i = 0; i < spec.singleBlocks; i++) {
    joint = singleBlock(ctx, i, joint);
    probe(`single.${i}`, joint);
  }
  img = splitRows(g, joint, [context, latents])[1]!;
  const [shift, scale] = ctx.modulation.chunks('norm_out', FINAL_CHUNKS) as [Value, Value];
  return linears.apply(layerNorm(g, img, scale, shift, 1e-6), 'proj_out');
}
