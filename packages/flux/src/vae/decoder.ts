import type { VaeSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { silu } from '../graph/ops.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { VaeLayers } from './layers.ts';
import { WholeNorms } from './norms.ts';
import { buildStage, type Stage } from './stage-graph.ts';

/**
 * latents [1, latentChannels, h, w], already unscaled -> image [1, 3, h * scaleFactor, w * scaleFactor], about -1..1.
 * Source: `Decoder` of diffusers' AutoencoderKL.
 */
export function buildVaeDecoder(spec: VaeSpec, locator: WeightLocator): GraphModel {
  const g = new GraphBuilder('vae-decoder');
  const layers = new VaeLayers(g, new GraphWeights(g, locator), new WholeNorms(g, spec.normGroups), 1);
  let x = g.input('latents', 'float32', [1, spec.latentChannels, 'h', 'w']);
  for (const level of spec.blockOutChannels.keys()) x = decoderLevel(layers, spec, level, x);
  g.output('image', x);
  return g.build();
}

/** The same as one graph for each resolution, lowest first. The first attends over the picture: it takes it whole. */
export function decoderStages(spec: VaeSpec, locator: WeightLocator): Stage[] {
  const levels = spec.blockOutChannels.toReversed();
  return levels.map((channels, level) => {
    const entering = level === 0 ? spec.latentChannels : levels[level - 1]!;
    return buildStage(spec, locator, {
      name: `vae-decoder-${level}`,
      entering,
      // Three values of a block, or what is upsampled before and after a convolution.
      live: Math.max(2 * entering, 3 * channels),
      perLatent: { input: level === 0 ? 1 : 2 ** (level - 1), work: 2 ** level, output: 2 ** level },
      // Two convolutions in a block, one before the first and one after the last.
      reach: 2 * (spec.layersPerBlock + 1) + 2,
      whole: level === 0,
      body: (layers, x) => decoderLevel(layers, spec, level, x),
    });
  });
}

/** The blocks of one resolution, `level` 0 the lowest, with what leads to them and, at the last, what follows. */
function decoderLevel(layers: VaeLayers, spec: VaeSpec, level: number, input: Value): Value {
  let x = input;
  if (level === 0) {
    if (spec.hasPostQuantConv) x = layers.conv(x, 'post_quant_conv');
    x = layers.middle(layers.conv(x, 'decoder.conv_in'), 'decoder.mid_block', spec.midAttention);
  } else {
    x = layers.conv(layers.upsample(x), `decoder.up_blocks.${level - 1}.upsamplers.0.conv`);
  }
  for (let i = 0; i <= spec.layersPerBlock; i++)
    x = layers.resnet(x, `decoder.up_blocks.${level}.resnets.${i}`);
  if (level < spec.blockOutChannels.length - 1) return x;
  return layers.conv(silu(layers.g, layers.groupNorm(x, 'decoder.conv_norm_out')), 'decoder.conv_out');
}
