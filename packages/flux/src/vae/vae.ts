import type { VaeSpec } from '../checkpoint/spec.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { GraphSession, type SessionOptions } from '../runtime/session.ts';
import type { GraphModel } from '../graph/builder.ts';
import { buildVaeDecoder, decoderStages } from './decoder.ts';
import { buildVaeEncoder, encoderStages } from './encoder.ts';
import { type Stage, stageSide } from './stage-graph.ts';
import { feed, runStage } from './stage-run.ts';
import { checkTiling, type Planes, type Tiling } from './tiling.ts';

/** Bounds of the logarithm of the variance, as `DiagonalGaussianDistribution` of diffusers clamps it. */
const LOG_VARIANCE = Object.freeze({ min: -30, max: 20 });

export interface VaeOptions extends SessionOptions {
  /** Bounds the memory of a run, whatever the picture's size; everything in one piece when absent. */
  tiling?: Tiling;
  /** Opens the graphs for each picture and gives their memory back: sessions never shrink. */
  transient?: boolean;
}

type Side = 'encoder' | 'decoder';
const GRAPHS = Object.freeze({ encoder: buildVaeEncoder, decoder: buildVaeDecoder });
const STAGES = Object.freeze({ encoder: encoderStages, decoder: decoderStages });

/** The autoencoder between images and the transformer's latents. Its encoder is loaded when first used. */
export class Vae {
  readonly spec: VaeSpec;
  readonly #locator: WeightLocator;
  readonly #options: VaeOptions;
  readonly #sessions = new Map<string, Promise<GraphSession>>();
  readonly #stages: Partial<Record<Side, Stage[]>> = {};

  private constructor(spec: VaeSpec, locator: WeightLocator, options: VaeOptions) {
    this.spec = spec;
    this.#locator = locator;
    this.#options = options;
  }

  /** @throws FluxError request_invalid for a tiling that covers nothing, engine_failed, out_of_memory */
  static async load(spec: VaeSpec, locator: WeightLocator, options: VaeOptions): Promise<Vae> {
    if (options.tiling) checkTiling(options.tiling);
    const vae = new Vae(spec, locator, options);
    if (!options.transient) await vae.#session('decoder', () => buildVaeDecoder(spec, locator));
    return vae;
  }

  /** Latents [channels, height, width] of the transformer -> image [3, H, W], about -1..1. */
  async decode(latents: Float32Array, height: number, width: number): Promise<Float32Array> {
    const { scalingFactor, shiftFactor, latentChannels: channels } = this.spec;
    const scaling = Math.fround(scalingFactor);
    const shift = Math.fround(shiftFactor);
    const data = latents.map((value) => Math.fround(value / scaling) + shift);
    return this.#run('decoder', { data, channels, height, width });
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
    return this.#run('encoder', { data: image, channels: this.spec.inChannels, height, width });
  }

  /** In one piece, or one resolution after the other in tiles where memory is bounded. */
  async #run(side: Side, whole: Planes): Promise<Float32Array> {
    const { tiling } = this.#options;
    const perLatent = side === 'decoder' ? 1 : this.spec.scaleFactor;
    if (!tiling || Math.max(whole.height, whole.width) <= tiling.above * perLatent) {
      const [input, output] =
        side === 'decoder' ? (['latents', 'image'] as const) : (['image', 'moments'] as const);
      return this.#withSession(
        side,
        () => GRAPHS[side](this.spec, this.#locator),
        async (session) => {
          const results = await session.run({ [input]: feed(whole) }, [output]);
          return results[output].data;
        },
      );
    }
    const stages = this.#stagesOf(side);
    const full = this.#stagesOf('decoder').at(-1)!;
    let x = whole;
    for (const stage of stages) {
      const tile = stageSide(stage, full, tiling.tile);
      x = await this.#withSession(
        stage.name,
        () => stage.graph,
        (session) => runStage(session, stage, x, tile),
      );
    }
    return x.data;
  }

  #stagesOf(side: Side): Stage[] {
    return (this.#stages[side] ??= STAGES[side](this.spec, this.#locator));
  }

  async #withSession<T>(
    name: string,
    graph: () => GraphModel,
    use: (session: GraphSession) => Promise<T>,
  ): Promise<T> {
    try {
      return await use(await this.#session(name, graph));
    } finally {
      if (this.#options.transient) await this.release();
    }
  }

  #session(name: string, graph: () => GraphModel): Promise<GraphSession> {
    const known = this.#sessions.get(name);
    if (known) return known;
    // Convolutions gain from the blocked layouts that only the full optimiser introduces.
    const opening = GraphSession.create(name, graph(), { ...this.#options, optimization: 'all' });
    this.#sessions.set(name, opening);
    opening.catch(() => this.#sessions.delete(name));
    return opening;
  }

  async release(): Promise<void> {
    const open = [...this.#sessions.values()];
    this.#sessions.clear();
    for (const session of open) await (await session).release();
  }
}
