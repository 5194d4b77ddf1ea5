import type { EncodedText, TextEncoder } from '../../text/encoder.ts';
import { fromRgb8 } from '../../vae/pixels.ts';
import { LOG_VARIANCE, type Vae } from '../../vae/vae.ts';
import type { TrainingItem } from '../trainer.ts';

/** The distribution of a picture's latents: each step of a training draws from it anew. */
export type LatentDistribution = Pick<TrainingItem, 'latent' | 'mean' | 'logVariance'>;

/** What turns a dataset into numbers. */
export interface DatasetEncoders {
  /** @param pixels RGB bytes [height, width, 3] */
  encodeImage(pixels: Uint8Array, width: number, height: number): Promise<LatentDistribution>;
  encodeText(caption: string): Promise<EncodedText>;
}

/** The encoders of a loaded model. */
export function modelEncoders(
  vae: Pick<Vae, 'spec' | 'moments'>,
  text: Pick<TextEncoder, 'encode'>,
): DatasetEncoders {
  return {
    async encodeImage(pixels, width, height) {
      const { latentChannels: channels, scaleFactor } = vae.spec;
      const moments = await vae.moments(fromRgb8(pixels, width, height), height, width);
      const count = moments.length / 2;
      return {
        latent: { channels, height: height / scaleFactor, width: width / scaleFactor },
        mean: moments.slice(0, count),
        logVariance: moments
          .subarray(count)
          .map((value) => Math.min(Math.max(value, LOG_VARIANCE.min), LOG_VARIANCE.max)),
      };
    },
    encodeText: (caption) => text.encode(caption),
  };
}
