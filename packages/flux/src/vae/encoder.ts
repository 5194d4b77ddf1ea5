import type { VaeSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel } from '../graph/builder.ts';
import { silu } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { VaeLayers } from './layers.ts';

/**
 * image [1, 3, H, W] in -1..1 -> moments [1, 2 * latentChannels, H / scaleFactor, W / scaleFactor]: means, then
 * logarithms of variances. Source: `Encoder` of diffusers' AutoencoderKL.
 */
export function buildVaeEncoder(spec: VaeSpec, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('vae-encoder');
  const layers = new VaeLayers(g, new GraphWeights(g, locator), spec.normGroups);
  const levels = spec.blockOutChannels.length;
  let x = layers.conv(g.input('image', 'float32', [1, spec.inChannels, 'H', 'W']), 'encoder.conv_in');
  for (let level = 0; level < levels; level++) {
    const path = `encoder.down_blocks.${level}`;
    for (let i = 0; i < spec.layersPerBlock; i++) x = layers.resnet(x, `${path}.resnets.${i}`);
    // The reference pads only below and to the right before its stride-2 convolution.
    if (level < levels - 1)
      x = layers.conv(x, `${path}.downsamplers.0.conv`, { stride: 2, pads: [0, 0, 1, 1] });
  }
  x = layers.middle(x, 'encoder.mid_block', spec.midAttention);
  x = layers.conv(silu(g, layers.groupNorm(x, 'encoder.conv_norm_out')), 'encoder.conv_out');
  if (spec.hasQuantConv) x = layers.conv(x, 'quant_conv');
  g.output('moments', x);
  return g.build();
}
