import type { Config, ConfigKind } from '../config.ts';
import type { MappedWeights } from '../layouts/layout.ts';
import { invalid } from '../problems.ts';
import { anchorShape, checkTensors, countBlocks, ShapeTable, type ExpectedShapes } from './check.ts';

/** The sizes of an AutoencoderKL. */
export interface VaeSpec {
  /** Channels of each resolution level, highest resolution first. */
  readonly blockOutChannels: readonly number[];
  /** Residual blocks of a level of the encoder; a level of the decoder has one more. */
  readonly layersPerBlock: number;
  readonly latentChannels: number;
  readonly inChannels: number;
  readonly outChannels: number;
  readonly normGroups: number;
  /** model latent = (vae latent - shiftFactor) * scalingFactor */
  readonly scalingFactor: number;
  readonly shiftFactor: number;
  /** Pixels per latent along one side: 2 ** (levels - 1). */
  readonly scaleFactor: number;
  /** Whether encoder and decoder attend in their middle. */
  readonly midAttention: boolean;
  /** Whether a 1 x 1 convolution follows the encoder, and whether one precedes the decoder. FLUX has neither. */
  readonly hasQuantConv: boolean;
  readonly hasPostQuantConv: boolean;
}

export const VAE_CONFIG: ConfigKind = Object.freeze({ name: 'ae_config.json', describes: ['AutoencoderKL'] });

/** diffusers' default, and what files without a config were trained with. */
const DEFAULT_NORM_GROUPS = 32;
/** FLUX.1's latent statistics, for its ae.safetensors, which comes without a config. */
const FLUX_LATENTS = Object.freeze({ channels: 16, scalingFactor: 0.3611, shiftFactor: 0.1159 });

/**
 * Derives the sizes of an autoencoder from its tensors and its config, and holds each against the other.
 *
 * @throws FluxError `checkpoint_missing` also when the latent statistics can only come from a config and there is
 *   none
 */
export function vaeSpec(weights: MappedWeights, config: Config): VaeSpec {
  const levels = countBlocks(weights, 'encoder.down_blocks.');
  const [, inChannels = 0] = anchorShape(weights, 'encoder.conv_in.weight', 4);
  const [, latentChannels = 0] = anchorShape(weights, 'decoder.conv_in.weight', 4);
  const [outChannels = 0] = anchorShape(weights, 'decoder.conv_out.weight', 4);
  const blockOutChannels = Array.from({ length: levels }, (_, level) => {
    const [channels = 0] = anchorShape(weights, `encoder.down_blocks.${level}.resnets.0.conv1.weight`, 4);
    return channels;
  });
  const spec: VaeSpec = Object.freeze({
    blockOutChannels: Object.freeze(blockOutChannels),
    layersPerBlock: countBlocks(weights, 'encoder.down_blocks.0.resnets.'),
    latentChannels,
    inChannels,
    outChannels,
    normGroups: config.integer('norm_num_groups', DEFAULT_NORM_GROUPS, 1),
    ...latentStatistics(config, latentChannels),
    scaleFactor: 2 ** (levels - 1),
    midAttention: weights.has('decoder.mid_block.attentions.0.to_q.weight'),
    hasQuantConv: weights.has('quant_conv.weight'),
    hasPostQuantConv: weights.has('post_quant_conv.weight'),
  });
  checkTensors(weights, vaeShapes(spec));
  checkConfig(config, spec);
  return spec;
}

function latentStatistics(config: Config, channels: number): Pick<VaeSpec, 'scalingFactor' | 'shiftFactor'> {
  if (!config.exists && channels === FLUX_LATENTS.channels) {
    const { scalingFactor, shiftFactor } = FLUX_LATENTS;
    return { scalingFactor, shiftFactor };
  }
  const scalingFactor = config.number('scaling_factor');
  if (scalingFactor === 0) throw invalid(config.file, 'scaling_factor is 0; latents cannot be divided by it');
  return { scalingFactor, shiftFactor: config.number('shift_factor', 0) };
}

function checkConfig(config: Config, spec: VaeSpec): void {
  config.choice('act_fn', ['silu'], 'silu');
  config.checkAgainst({
    block_out_channels: spec.blockOutChannels,
    layers_per_block: spec.layersPerBlock,
    latent_channels: spec.latentChannels,
    in_channels: spec.inChannels,
    out_channels: spec.outChannels,
    mid_block_add_attention: spec.midAttention,
    use_quant_conv: spec.hasQuantConv,
    use_post_quant_conv: spec.hasPostQuantConv,
  });
  const uneven = spec.blockOutChannels.find((channels) => channels % spec.normGroups !== 0);
  if (uneven !== undefined) {
    throw invalid(
      config.file,
      `norm_num_groups is ${spec.normGroups}; it must divide the ${uneven} channels of a level`,
      {
        key: 'norm_num_groups',
        found: spec.normGroups,
        channels: spec.blockOutChannels,
      },
    );
  }
}

/** Every tensor of an AutoencoderKL of these sizes, by canonical name. */
export function vaeShapes(spec: VaeSpec): ExpectedShapes {
  const { blockOutChannels: channels, layersPerBlock, latentChannels } = spec;
  const table = new ShapeTable();
  const first = channels[0]!;
  const last = channels[channels.length - 1]!;

  table.module('encoder.conv_in', [first, spec.inChannels, 3, 3]);
  addLevels(table, 'encoder.down_blocks', 'downsamplers', first, channels, layersPerBlock);
  addMiddle(table, 'encoder', last, spec.midAttention);
  table.module('encoder.conv_norm_out', [last]);
  table.module('encoder.conv_out', [2 * latentChannels, last, 3, 3]);
  if (spec.hasQuantConv) table.module('quant_conv', [2 * latentChannels, 2 * latentChannels, 1, 1]);

  if (spec.hasPostQuantConv) table.module('post_quant_conv', [latentChannels, latentChannels, 1, 1]);
  table.module('decoder.conv_in', [last, latentChannels, 3, 3]);
  addMiddle(table, 'decoder', last, spec.midAttention);
  addLevels(table, 'decoder.up_blocks', 'upsamplers', last, channels.toReversed(), layersPerBlock + 1);
  table.module('decoder.conv_norm_out', [first]);
  table.module('decoder.conv_out', [spec.outChannels, first, 3, 3]);
  return table.shapes;
}

/** Levels in the order in which data passes; each but the last is followed by a resampling convolution. */
function addLevels(
  table: ShapeTable,
  path: string,
  resampler: string,
  entering: number,
  channels: readonly number[],
  blocks: number,
): void {
  let previous = entering;
  for (const [level, width] of channels.entries()) {
    for (let block = 0; block < blocks; block++) {
      addResnet(table, `${path}.${level}.resnets.${block}`, block === 0 ? previous : width, width);
    }
    if (level < channels.length - 1)
      table.module(`${path}.${level}.${resampler}.0.conv`, [width, width, 3, 3]);
    previous = width;
  }
}

function addMiddle(table: ShapeTable, side: string, width: number, hasAttention: boolean): void {
  for (const block of [0, 1]) addResnet(table, `${side}.mid_block.resnets.${block}`, width, width);
  if (!hasAttention) return;
  const attention = `${side}.mid_block.attentions.0`;
  table.module(`${attention}.group_norm`, [width]);
  for (const name of ['to_q', 'to_k', 'to_v', 'to_out.0'])
    table.module(`${attention}.${name}`, [width, width]);
}

function addResnet(table: ShapeTable, path: string, entering: number, width: number): void {
  table.module(`${path}.norm1`, [entering]);
  table.module(`${path}.conv1`, [width, entering, 3, 3]);
  table.module(`${path}.norm2`, [width]);
  table.module(`${path}.conv2`, [width, width, 3, 3]);
  if (entering !== width) table.module(`${path}.conv_shortcut`, [width, entering, 1, 1]);
}
