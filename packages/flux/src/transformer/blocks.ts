import {
  add,
  attention,
  concat,
  geluTanh,
  headRmsNorm,
  layerNorm,
  mul,
  rotary,
  splitRows,
} from '../graph/ops.ts';
import type { GraphBuilder, Value } from '../graph/builder.ts';
import type { Linears } from '../graph/linears.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { DOUBLE_CHUNKS, SINGLE_CHUNKS, type Modulation } from './modulation.ts';

/** Both norms of FLUX's blocks use this epsilon (`eps=1e-6` in the reference implementation). */
const EPSILON = 1e-6;

export interface BlockContext {
  g: GraphBuilder;
  linears: Linears;
  spec: TransformerSpec;
  modulation: Modulation;
  /** RoPE of the joint sequence, text tokens first: [T + S, headDim / 2]. */
  cos: Value;
  sin: Value;
}

/**
 * A double-stream block: image and text have weights of their own and meet in one attention.
 * img [S, hidden], txt [T, hidden]. Source: `FluxTransformerBlock` of diffusers.
 */
export function doubleBlock(
  ctx: BlockContext,
  index: number,
  img: Value,
  txt: Value,
): { img: Value; txt: Value } {
  const { g, linears, spec, modulation } = ctx;
  const path = `transformer_blocks.${index}`;
  const [imgMod, txtMod] = [`${path}.norm1`, `${path}.norm1_context`].map((name) =>
    modulation.chunks(name, DOUBLE_CHUNKS),
  ) as [Value[], Value[]];

  const imgNorm = layerNorm(g, img, imgMod[1]!, imgMod[0]!, EPSILON);
  const txtNorm = layerNorm(g, txt, txtMod[1]!, txtMod[0]!, EPSILON);
  const project = (x: Value, name: string, norm?: string): Value => {
    const y = linears.apply(x, `${path}.attn.${name}`);
    return norm
      ? headRmsNorm(g, y, linears.weights.get(`${path}.attn.${norm}.weight`), spec.numHeads, EPSILON)
      : y;
  };
  const joint = (text: Value, image: Value): Value => concat(g, [text, image], 0);
  const q = joint(project(txtNorm, 'add_q_proj', 'norm_added_q'), project(imgNorm, 'to_q', 'norm_q'));
  const k = joint(project(txtNorm, 'add_k_proj', 'norm_added_k'), project(imgNorm, 'to_k', 'norm_k'));
  const v = joint(project(txtNorm, 'add_v_proj'), project(imgNorm, 'to_v'));
  const attended = selfAttention(ctx, q, k, v);

  const [txtAttended, imgAttended] = splitRows(g, attended, [txt, img]) as [Value, Value];
  return {
    img: feedForward(
      ctx,
      gated(g, img, imgMod[2]!, linears.apply(imgAttended, `${path}.attn.to_out.0`)),
      imgMod,
      `${path}.ff`,
    ),
    txt: feedForward(
      ctx,
      gated(g, txt, txtMod[2]!, linears.apply(txtAttended, `${path}.attn.to_add_out`)),
      txtMod,
      `${path}.ff_context`,
    ),
  };
}

/**
 * A single-stream block: attention and MLP side by side on the joint sequence [T + S, hidden].
 * Source: `FluxSingleTransformerBlock` of diffusers.
 */
export function singleBlock(ctx: BlockContext, index: number, x: Value): Value {
  const { g, linears, spec, modulation } = ctx;
  const path = `single_transformer_blocks.${index}`;
  const [shift, scale, gate] = modulation.chunks(`${path}.norm`, SINGLE_CHUNKS) as [Value, Value, Value];
  const normed = layerNorm(g, x, scale, shift, EPSILON);
  const head = (name: string, norm: string): Value =>
    headRmsNorm(
      g,
      linears.apply(normed, `${path}.attn.${name}`),
      linears.weights.get(`${path}.attn.${norm}.weight`),
      spec.numHeads,
      EPSILON,
    );
  const attended = selfAttention(
    ctx,
    head('to_q', 'norm_q'),
    head('to_k', 'norm_k'),
    linears.apply(normed, `${path}.attn.to_v`),
  );
  const mlp = geluTanh(g, linears.apply(normed, `${path}.proj_mlp`));
  return gated(g, x, gate, linears.apply(concat(g, [attended, mlp], 1), `${path}.proj_out`));
}

function selfAttention(ctx: BlockContext, q: Value, k: Value, v: Value): Value {
  const { g, cos, sin, spec } = ctx;
  return attention(g, rotary(g, q, cos, sin), rotary(g, k, cos, sin), v, { heads: spec.numHeads });
}

function feedForward(ctx: BlockContext, x: Value, mod: Value[], path: string): Value {
  const { g, linears } = ctx;
  const normed = layerNorm(g, x, mod[4]!, mod[3]!, EPSILON);
  const hidden = geluTanh(g, linears.apply(normed, `${path}.net.0.proj`));
  return gated(g, x, mod[5]!, linears.apply(hidden, `${path}.net.2`));
}

function gated(g: GraphBuilder, x: Value, gate: Value, y: Value): Value {
  return add(g, x, mul(g, y, gate));
}
