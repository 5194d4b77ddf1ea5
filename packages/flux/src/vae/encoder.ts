import type { VaeSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { silu } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { VaeLayers } from './layers.ts';
import { WholeNorms } from './norms.ts';
import { buildStage, type Stage } from './stage-graph.ts';

/**
 * image [1, 3, H, W] in -1..1 -> moments [1, 2 * latentChannels, H / scaleFactor, W / scaleFactor]: means, then
 * logarithms of variances. Source: `Encoder` of diffusers' AutoencoderKL.
 */
export function buildVaeEncoder(spec: VaeSpec, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('vae-encoder');
  const norms = new WholeNorms(g, spec.normGroups);
  const layers = new VaeLayers(g, new GraphWeights(g, locator), norms, spec.scaleFactor);
  let x = g.input('image', 'float32', [1, spec.inChannels, 'H', 'W']);
  for (const level of spec.blockOutChannels.keys()) x = encoderLevel(layers, spec, level, x);
  g.output('moments', x);
  return g.build();
}

/** The same as one graph for each resolution, highest first. The last attends over the picture: it takes it whole. */
export function encoderStages(spec: VaeSpec, locator: WeightLocator): Stage[] {
  const last = spec.blockOutChannels.length - 1;
  return spec.blockOutChannels.map((channels, level) => {
    const work = 2 ** (last - level);
    const entering = level === 0 ? spec.inChannels : spec.blockOutChannels[level - 1]!;
    return buildStage(spec, locator, {
      name: `vae-encoder-${level}`,
      entering,
      live: 3 * channels,
      perLatent: { input: work, work, output: level < last ? work / 2 : work },
      // Two convolutions in a block, one before the first; that with stride 2 sees two positions to the right.
      reach: 2 * spec.layersPerBlock + 3,
      whole: level === last,
      body: (layers, x) => encoderLevel(layers, spec, level, x),
    });
  });
}

/** The blocks of one resolution, `level` 0 the highest, with the convolution that leads to the next or what follows. */
function encoderLevel(layers: VaeLayers, spec: VaeSpec, level: number, input: Value): Value {
  const path = `encoder.down_blocks.${level}`;
  let x = level === 0 ? layers.conv(input, 'encoder.conv_in') : input;
  for (let i = 0; i < spec.layersPerBlock; i++) x = layers.resnet(x, `${path}.resnets.${i}`);
  // The reference pads only below and to the right before its stride-2 convolution.
  if (level < spec.blockOutChannels.length - 1)
    return layers.conv(x, `${path}.downsamplers.0.conv`, { stride: 2, pads: [0, 0, 1, 1] });
  x = layers.middle(x, 'encoder.mid_block', spec.midAttention);
  x = layers.conv(silu(layers.g, layers.groupNorm(x, 'encoder.conv_norm_out')), 'encoder.conv_out');
  return spec.hasQuantConv ? layers.conv(x, 'quant_conv') : x;
}
