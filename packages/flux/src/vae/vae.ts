import type { VaeSpec } from '../checkpoint/spec.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { GraphSession, type SessionOptions } from '../runtime/session.ts';
import { buildVaeDecoder } from './decoder.ts';
import { buildVaeEncoder } from './encoder.ts';

/** Bounds of the logarithm of the variance, as `DiagonalGaussianDistribution` of diffusers clamps it. */
const LOG_VARIANCE = Object.freeze({ min: -30, max: 20 });

/** The autoencoder between images and the transformer's latents. Its encoder is loaded when first used. */
export class Vae {
  readonly spec: VaeSpec;
  readonly #decoder: GraphSession;
  readonly #openEncoder: () => Promise<GraphSession>;
  #encoder: Promise<GraphSession> | null = null;

  private constructor(spec: VaeSpec, decoder: GraphSession, openEncoder: () => Promise<GraphSession>) {
    this.spec = spec;
    this.#decoder = decoder;
    this.#openEncoder = openEncoder;
  }

  static async load(spec: VaeSpec, locator: WeightLocator, options: SessionOptions): Promise<Vae> {
    // Convolutions gain from the blocked layouts that only the full optimiser introduces.
    const withLayouts: SessionOptions = { ...options, optimization: 'all' };
    const decoder = await GraphSession.create('vae-decoder', buildVaeDecoder(spec, locator), withLayouts);
    return new Vae(spec, decoder, () =>
      GraphSession.create('vae-encoder', buildVaeEncoder(spec, locator), withLayouts),
    );
  }

  /** Latents [channels, height, width] of the transformer -> image [3, H, W], about -1..1. */
  async decode(latents: Float32Array, height: number, width: number): Promise<Float32Array> {
    const { scalingFactor, shiftFactor, latentChannels } = this.spec;
    const scaling = Math.fround(scalingFactor);
    const shift = Math.fround(shiftFactor);
    const data = latents.map((value) => Math.fround(value / scaling) + shift);
    const { image } = await this.#decoder.run(
      { latents: { data, dims: [1, latentChannels, height, width] } },
      ['image'],
    );
    return image.data;
  }

  /**
   * Image [3, H, W] in -1..1 -> latents of the transformer [channels, H / scaleFactor, W / scaleFactor], drawn from
   * the encoder's distribution with the standard normal `sample`.
   */
  async encode(
    image: Float32Array,
    height: number,
    width: number,
    sample: Float32Array,
  ): Promise<Float32Array> {
    const { scalingFactor, shiftFactor } = this.spec;
    const { mean, logVariance } = await this.distribution(image, height, width);
    return mean.map((center, i) => {
      const drawn = center + Math.fround(Math.exp(0.5 * logVariance[i]!)) * sample[i]!;
      return (drawn - shiftFactor) * scalingFactor;
    });
  }

  /** What the encoder says of an image's latents, each [channels, H / scaleFactor, W / scaleFactor]. */
  async distribution(
    image: Float32Array,
    height: number,
    width: number,
  ): Promise<{ mean: Float32Array; logVariance: Float32Array }> {
    const moments = await this.moments(image, height, width);
    const count = moments.length / 2;
    return {
      mean: moments.slice(0, count),
      logVariance: moments
        .subarray(count)
        .map((value) => Math.min(Math.max(value, LOG_VARIANCE.min), LOG_VARIANCE.max)),
    };
  }

  /** Means, then logarithms of variances: [2 * channels, H / scaleFactor, W / scaleFactor]. */
  async moments(image: Float32Array, height: number, width: number): Promise<Float32Array> {
    this.#encoder ??= this.#openEncoder().catch((error: unknown) => {
      this.#encoder = null;
      throw error;
    });
    const encoder = await this.#encoder;
    const feed = { data: image, dims: [1, this.spec.inChannels, height, width] };
    return (await encoder.run({ image: feed }, ['moments'])).moments.data;
  }

  async release(): Promise<void> {
    await this.#decoder.release();
    await (await this.#encoder)?.release();
  }
}
