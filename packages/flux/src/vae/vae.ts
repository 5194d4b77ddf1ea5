import type { VaeSpec } from '../checkpoint/spec.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { type Feed, GraphSession, type SessionOptions } from '../runtime/session.ts';
import { buildVaeDecoder } from './decoder.ts';
import { buildVaeEncoder } from './encoder.ts';
import { checkTiling, runTiled, type Planes, type TileScales, type Tiling } from './tiling.ts';

/** Bounds of the logarithm of the variance, as `DiagonalGaussianDistribution` of diffusers clamps it. */
const LOG_VARIANCE = Object.freeze({ min: -30, max: 20 });

export interface VaeOptions extends SessionOptions {
  /** Bounds the memory of a run, whatever the picture's size; everything in one piece when absent. */
  tiling?: Tiling;
  /** Opens the graphs for each picture and gives their memory back: sessions never shrink. */
  transient?: boolean;
}

type Side = 'encoder' | 'decoder';

/** The autoencoder between images and the transformer's latents. Its encoder is loaded when first used. */
export class Vae {
  readonly spec: VaeSpec;
  readonly #locator: WeightLocator;
  readonly #options: VaeOptions;
  readonly #sessions = new Map<Side, Promise<GraphSession>>();

  private constructor(spec: VaeSpec, locator: WeightLocator, options: VaeOptions) {
    this.spec = spec;
    this.#locator = locator;
    this.#options = options;
  }

  /** @throws FluxError request_invalid for a tiling that covers nothing, engine_failed, out_of_memory */
  static async load(spec: VaeSpec, locator: WeightLocator, options: VaeOptions): Promise<Vae> {
    if (options.tiling) checkTiling(options.tiling);
    const vae = new Vae(spec, locator, options);
    if (!options.transient) await vae.#session('decoder');
    return vae;
  }

  /** Latents [channels, height, width] of the transformer -> image [3, H, W], about -1..1. */
  async decode(latents: Float32Array, height: number, width: number): Promise<Float32Array> {
    const { scalingFactor, shiftFactor, latentChannels: channels, scaleFactor } = this.spec;
    const scaling = Math.fround(scalingFactor);
    const shift = Math.fround(shiftFactor);
    const data = latents.map((value) => Math.fround(value / scaling) + shift);
    return this.#run(
      'decoder',
      { data, channels, height, width },
      { input: 1, output: scaleFactor },
      async (decoder, piece) => (await decoder.run({ latents: feed(piece) }, ['image'])).image.data,
    );
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
    return this.#run(
      'encoder',
      { data: image, channels: this.spec.inChannels, height, width },
      { input: this.spec.scaleFactor, output: 1 },
      async (encoder, piece) => (await encoder.run({ image: feed(piece) }, ['moments'])).moments.data,
    );
  }

  /** In tiles where the picture is large enough for them, else in one piece. */
  async #run(
    side: Side,
    whole: Planes,
    scales: TileScales,
    run: (session: GraphSession, piece: Planes) => Promise<Float32Array>,
  ): Promise<Float32Array> {
    const { tiling, transient } = this.#options;
    const session = await this.#session(side);
    try {
      const longest = Math.max(whole.height, whole.width) / scales.input;
      const runPiece = (piece: Planes): Promise<Float32Array> => run(session, piece);
      return await (tiling && longest > tiling.above
        ? runTiled(whole, tiling, scales, runPiece)
        : runPiece(whole));
    } finally {
      if (transient) await this.release();
    }
  }

  #session(side: Side): Promise<GraphSession> {
    const known = this.#sessions.get(side);
    if (known) return known;
    const graph = (side === 'decoder' ? buildVaeDecoder : buildVaeEncoder)(this.spec, this.#locator);
    // Convolutions gain from the blocked layouts that only the full optimiser introduces.
    const opening = GraphSession.create(`vae-${side}`, graph, { ...this.#options, optimization: 'all' });
    this.#sessions.set(side, opening);
    opening.catch(() => this.#sessions.delete(side));
    return opening;
  }

  async release(): Promise<void> {
    const open = [...this.#sessions.values()];
    this.#sessions.clear();
    for (const session of open) await (await session).release();
  }
}

function feed({ data, channels, height, width }: Planes): Feed {
  return { data, dims: [1, channels, height, width] };
}
