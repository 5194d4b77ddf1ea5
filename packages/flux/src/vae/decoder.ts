import type { VaeSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel } from '../graph/builder.ts';
import { silu } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { VaeLayers } from './layers.ts';

/**
 * latents [1, latentChannels, h, w], already unscaled -> image [1, 3, h * scaleFactor, w * scaleFactor], about -1..1.
 * Source: `Decoder` of diffusers' AutoencoderKL.
 */
export function buildVaeDecoder(spec: VaeSpec, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('vae-decoder');
  const layers = new VaeLayers(g, new GraphWeights(g, locator), spec.normGroups);
  const levels = spec.blockOutChannels.length;
  let x = g.input('latents', 'float32', [1, spec.latentChannels, 'h', 'w']);
  if (spec.hasPostQuantConv) x = layers.conv(x, 'post_quant_conv');
  x = layers.middle(layers.conv(x, 'decoder.conv_in'), 'decoder.mid_block', spec.midAttention);
  for (let level = 0; level < levels; level++) {
    const path = `decoder.up_blocks.${level}`;
    for (let i = 0; i <= spec.layersPerBlock; i++) x = layers.resnet(x, `${path}.resnets.${i}`);
    if (level < levels - 1) x = layers.conv(layers.upsample(x), `${path}.upsamplers.0.conv`);
  }
  x = silu(g, layers.groupNorm(x, 'decoder.conv_norm_out'));
  g.output('image', layers.conv(x, 'decoder.conv_out'));
  return g.build();
}
