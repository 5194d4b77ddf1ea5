import type { EncodedText, TextEncoder } from '../../text/encoder.ts';
import { fromRgb8 } from '../../vae/pixels.ts';
import type { Vae } from '../../vae/vae.ts';
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
  vae: Pick<Vae, 'spec' | 'distribution'>,
  text: Pick<TextEncoder, 'encode'>,
): DatasetEncoders {
  return {
    async encodeImage(pixels, width, height) {
      const { latentChannels: channels, scaleFactor } = vae.spec;
      return {
        latent: { channels, height: height / scaleFactor, width: width / scaleFactor },
        ...(await vae.distribution(fromRgb8(pixels, width, height), height, width)),
      };
    },
    encodeText: (caption) => text.encode(caption),
  };
}
