import type { Config, ConfigKind } from '../config.ts';
import type { MappedWeights } from '../layouts/layout.ts';
import { invalid, shown } from '../problems.ts';
import { anchorShape, checkTensors, countBlocks, ShapeTable, type ExpectedShapes } from './check.ts';

/** The sizes of a FLUX transformer, read off its tensors. */
export interface TransformerSpec {
  /** Width of the residual stream; numHeads * headDim. */
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly headDim: number;
  readonly doubleBlocks: number;
  readonly singleBlocks: number;
  /** Width of the MLP of both kinds of block. */
  readonly mlpSize: number;
  /** Values of one packed latent token going in, and coming out. */
  readonly inChannels: number;
  readonly outChannels: number;
  /** Width of the T5 states. */
  readonly jointDim: number;
  /** Width of the pooled CLIP state. */
  readonly pooledDim: number;
  /** Whether guidance is embedded (dev) or not (schnell). */
  readonly guidanceEmbeds: boolean;
  /** Parts of headDim that rotate with (batch id, row, column); each is even and they sum to headDim. */
  readonly axesDims: readonly number[];
  /** Base of the rotary frequencies. */
  readonly theta: number;
  /** Width of the sinusoidal embedding of timestep and guidance. */
  readonly timestepDim: number;
  /** Whether the q, k, v projections of the double blocks have biases. */
  readonly hasQkvBias: boolean;
}

export const TRANSFORMER_CONFIG: ConfigKind = Object.freeze({
  name: 'transformer_config.json',
  describes: ['FluxTransformer2DModel'],
});

/** Rotary axes of FLUX.1, the only ones published for heads of 128. */
const FLUX_HEAD_DIM = 128;
const FLUX_AXES: readonly number[] = Object.freeze([16, 56, 56]);
/** Axes of the position ids: batch, row, column. */
const AXES = 3;
const THETA = 10_000;

/**
 * Derives the sizes of a transformer from its tensors, and holds every tensor and the config against them.
 *
 * @throws FluxError `checkpoint_missing` also when the rotary axes can only come from a config and there is none
 */
export function transformerSpec(weights: MappedWeights, config: Config): TransformerSpec {
  const [hiddenSize = 0, inChannels = 0] = anchorShape(weights, 'x_embedder.weight', 2);
  const [headDim = 0] = anchorShape(weights, 'transformer_blocks.0.attn.norm_q.weight', 1);
  const [mlpSize = 0] = anchorShape(weights, 'transformer_blocks.0.ff.net.0.proj.weight', 2);
  const [, jointDim = 0] = anchorShape(weights, 'context_embedder.weight', 2);
  const [, pooledDim = 0] = anchorShape(weights, 'time_text_embed.text_embedder.linear_1.weight', 2);
  const [, timestepDim = 0] = anchorShape(weights, 'time_text_embed.timestep_embedder.linear_1.weight', 2);
  const [outChannels = 0] = anchorShape(weights, 'proj_out.weight', 2);
  if (hiddenSize % headDim !== 0) {
    throw invalid(
      weights.location,
      `has a width of ${hiddenSize}, which is no multiple of its head width ${headDim}`,
      {
        found: hiddenSize,
        headDim,
      },
    );
  }
  const spec: TransformerSpec = Object.freeze({
    hiddenSize,
    numHeads: hiddenSize / headDim,
    headDim,
    doubleBlocks: countBlocks(weights, 'transformer_blocks.'),
    singleBlocks: countBlocks(weights, 'single_transformer_blocks.'),
    mlpSize,
    inChannels,
    outChannels,
    jointDim,
    pooledDim,
    guidanceEmbeds: weights.has('time_text_embed.guidance_embedder.linear_1.weight'),
    axesDims: axesDims(config, headDim),
    theta: THETA,
    timestepDim,
    hasQkvBias: !weights.layout.qkvBiasOptional || weights.has('transformer_blocks.0.attn.to_q.bias'),
  });
  checkTensors(weights, transformerShapes(spec));
  config.checkAgainst({
    num_layers: spec.doubleBlocks,
    num_single_layers: spec.singleBlocks,
    num_attention_heads: spec.numHeads,
    attention_head_dim: headDim,
    joint_attention_dim: jointDim,
    pooled_projection_dim: pooledDim,
    in_channels: inChannels,
    out_channels: outChannels,
    guidance_embeds: spec.guidanceEmbeds,
    patch_size: 1,
  });
  return spec;
}

function axesDims(config: Config, headDim: number): readonly number[] {
  const axes = config.integers('axes_dims_rope', headDim === FLUX_HEAD_DIM ? FLUX_AXES : undefined);
  const sum = axes.reduce((total, size) => total + size, 0);
  if (axes.length !== AXES || sum !== headDim || axes.some((size) => size % 2 !== 0)) {
    throw invalid(
      config.file,
      `axes_dims_rope is ${shown(axes)}; expected ${AXES} even numbers whose sum is the head width ${headDim}`,
      { key: 'axes_dims_rope', found: axes, headDim },
    );
  }
  return Object.freeze([...axes]);
}

/** Every tensor of a FLUX transformer of these sizes, by canonical name. */
export function transformerShapes(spec: TransformerSpec): ExpectedShapes {
  const { hiddenSize: d, mlpSize, headDim, timestepDim } = spec;
  const table = new ShapeTable();
  table.module('x_embedder', [d, spec.inChannels]);
  table.module('context_embedder', [d, spec.jointDim]);
  const embedders: [string, number][] = [
    ['timestep', timestepDim],
    ['text', spec.pooledDim],
  ];
  if (spec.guidanceEmbeds) embedders.push(['guidance', timestepDim]);
  for (const [name, width] of embedders) {
    table.module(`time_text_embed.${name}_embedder.linear_1`, [d, width]);
    table.module(`time_text_embed.${name}_embedder.linear_2`, [d, d]);
  }
  for (let i = 0; i < spec.doubleBlocks; i++) {
    const block = `transformer_blocks.${i}`;
    for (const norm of ['norm1', 'norm1_context']) table.module(`${block}.${norm}.linear`, [6 * d, d]);
    for (const name of ['to_q', 'to_k', 'to_v', 'add_q_proj', 'add_k_proj', 'add_v_proj']) {
      table.module(`${block}.attn.${name}`, [d, d], spec.hasQkvBias);
    }
    for (const name of ['to_out.0', 'to_add_out']) table.module(`${block}.attn.${name}`, [d, d]);
    for (const name of ['norm_q', 'norm_k', 'norm_added_q', 'norm_added_k']) {
      table.module(`${block}.attn.${name}`, [headDim], false);
    }
    for (const mlp of ['ff', 'ff_context']) {
      table.module(`${block}.${mlp}.net.0.proj`, [mlpSize, d]);
      table.module(`${block}.${mlp}.net.2`, [d, mlpSize]);
    }
  }
  for (let i = 0; i < spec.singleBlocks; i++) {
    const block = `single_transformer_blocks.${i}`;
    table.module(`${block}.norm.linear`, [3 * d, d]);
    for (const name of ['to_q', 'to_k', 'to_v']) table.module(`${block}.attn.${name}`, [d, d]);
    for (const name of ['norm_q', 'norm_k']) table.module(`${block}.attn.${name}`, [headDim], false);
    table.module(`${block}.proj_mlp`, [mlpSize, d]);
    table.module(`${block}.proj_out`, [d, d + mlpSize]);
  }
  for (const half of ['shift', 'scale']) table.module(`norm_out.linear_${half}`, [d, d]);
  table.module('proj_out', [spec.outChannels, d]);
  return table.shapes;
}
