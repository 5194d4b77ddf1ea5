import { add, attention, concat, headRmsNorm, layerNorm, mul, rotary, splitRows } from '../graph/ops.ts';
import type { GraphBuilder, Value } from '../graph/builder.ts';
import type { Linears } from '../graph/linears.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { DOUBLE_CHUNKS, SINGLE_CHUNKS, type Modulation } from './modulation.ts';

/** Both norms of FLUX's blocks use this epsilon (`eps=1e-6` in the reference implementation). */
const EPSILON = 1e-6;

/** The modules that the normed image tokens of a double block, its normed text tokens and a single block go through. */
const PROJECTIONS = ['to_q', 'to_k', 'to_v'] as const;
const TEXT_PROJECTIONS = ['add_q_proj', 'add_k_proj', 'add_v_proj'] as const;

type Triple = [Value, Value, Value];

/** Modules of a block that share their operand, in the order in which it is given to them; the others have their own. */
export function doubleBlockGroups(index: number): string[][] {
  const path = `transformer_blocks.${index}`;
  return [
    attentionModules(path, TEXT_PROJECTIONS),
    attentionModules(path, PROJECTIONS),
    ...['attn.to_out.0', 'attn.to_add_out'].map((name) => [`${path}.${name}`]),
    ...['ff', 'ff_context'].flatMap((name) => [[`${path}.${name}.net.0.proj`], [`${path}.${name}.net.2`]]),
  ];
}

export function singleBlockGroups(index: number): string[][] {
  const path = `single_transformer_blocks.${index}`;
  return [singleProjections(path), [`${path}.proj_out`]];
}

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
  const { g, linears, modulation } = ctx;
  const path = `transformer_blocks.${index}`;
  const [imgMod, txtMod] = [`${path}.norm1`, `${path}.norm1_context`].map((name) =>
    modulation.chunks(name, DOUBLE_CHUNKS),
  ) as [Value[], Value[]];

  const imgNorm = layerNorm(g, img, imgMod[1]!, imgMod[0]!, EPSILON);
  const txtNorm = layerNorm(g, txt, txtMod[1]!, txtMod[0]!, EPSILON);
  const joint = (text: Value, image: Value): Value => concat(g, [text, image], 0);
  const [tq, tk, tv] = linears.applyAll(txtNorm, attentionModules(path, TEXT_PROJECTIONS)) as Triple;
  const [iq, ik, iv] = linears.applyAll(imgNorm, attentionModules(path, PROJECTIONS)) as Triple;
  const q = joint(headNorm(ctx, tq, path, 'norm_added_q'), headNorm(ctx, iq, path, 'norm_q'));
  const k = joint(headNorm(ctx, tk, path, 'norm_added_k'), headNorm(ctx, ik, path, 'norm_k'));
  const attended = selfAttention(ctx, q, k, joint(tv, iv));

  const [txtAttended, imgAttended] = splitRows(g, attended, [txt, img]) as [Value, Value];
  return {
    img: feedForward(
      ctx,
      gated(g, img, imgMod[2]!, linears.apply(imgAttended, `${path}.attn.to_out.0`)),
      imgMod,
      `${path}.ff`,
    ),
    txt: clipped(
      g,
      feedForward(
        ctx,
        gated(g, txt, txtMod[2]!, linears.apply(txtAttended, `${path}.attn.to_add_out`)),
        txtMod,
        `${path}.ff_context`,
      ),
    ),
  };
}

/**
 * A single-stream block: attention and MLP side by side on the joint sequence [T + S, hidden].
 * Source: `FluxSingleTransformerBlock` of diffusers.
 */
export function singleBlock(ctx: BlockContext, index: number, x: Value): Value {
  const { g, linears, modulation } = ctx;
  const path = `single_transformer_blocks.${index}`;
  const [shift, scale, gate] = modulation.chunks(`${path}.norm`, SINGLE_CHUNKS) as [Value, Value, Value];
  const normed = layerNorm(g, x, scale, shift, EPSILON);
  const all = linears.applyAll(normed, singleProjections(path), `${path}.proj_mlp`);
  const [q, k, v, hidden] = all as [...Triple, Value];
  const attended = selfAttention(ctx, headNorm(ctx, q, path, 'norm_q'), headNorm(ctx, k, path, 'norm_k'), v);
  const both = concat(g, [attended, hidden], 1);
  return clipped(g, gated(g, x, gate, linears.apply(both, `${path}.proj_out`)));
}

function selfAttention(ctx: BlockContext, q: Value, k: Value, v: Value): Value {
  const { g, cos, sin, spec } = ctx;
  return attention(g, rotary(g, q, cos, sin), rotary(g, k, cos, sin), v, { heads: spec.numHeads });
}

function feedForward(ctx: BlockContext, x: Value, mod: Value[], path: string): Value {
  const { g, linears } = ctx;
  const normed = layerNorm(g, x, mod[4]!, mod[3]!, EPSILON);
  const hidden = linears.applyGelu(normed, `${path}.net.0.proj`);
  return gated(g, x, mod[5]!, linears.apply(hidden, `${path}.net.2`));
}

function gated(g: GraphBuilder, x: Value, gate: Value, y: Value): Value {
  return add(g, x, mul(g, y, gate));
}

function attentionModules(path: string, names: readonly string[]): string[] {
  return names.map((name) => `${path}.attn.${name}`);
}

function singleProjections(path: string): string[] {
  return [...attentionModules(path, PROJECTIONS), `${path}.proj_mlp`];
}

function headNorm({ g, linears, spec }: BlockContext, x: Value, path: string, name: string): Value {
  return headRmsNorm(g, x, linears.weights.get(`${path}.attn.${name}.weight`), spec.numHeads, EPSILON);
}

/** The residual stream leaves the range of fp16 in FLUX.1; diffusers clips these values too. */
function clipped(g: GraphBuilder, x: Value): Value {
  if (x.type !== 'float16') return x;
  const bound = (value: number): Value => g.constant(Float16Array.of(value), []);
  return g.op('Clip', [x, bound(-65504), bound(65504)], x);
}
