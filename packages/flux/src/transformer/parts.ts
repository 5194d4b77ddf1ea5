import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { GraphModel } from '../graph/builder.ts';
import type { WeightLocator } from '../graph/weights.ts';
import type { Deltas } from '../lora/compose.ts';
import { AdaptedSession } from '../runtime/adapted-session.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { buildConditioner } from './conditioner.ts';
import { buildTokenPath } from './token-path.ts';

/** fp32 values [rows, columns], or a vector. */
export interface Rows {
  data: Float32Array;
  dims: readonly number[];
}

/** What the conditioner is fed; `guidance` only in models with a guidance embedding. */
export interface ConditionerFeeds {
  /** Sinusoidal embeddings [steps, timestepDim]. */
  time: Rows;
  /** [1, timestepDim]. */
  guidance?: Rows;
  /** [1, pooledDim]. */
  pooled: Rows;
  /** [T, jointDim]. */
  text: Rows;
}

/** The part of the transformer that runs once per job, wherever its weights are. */
export interface Conditioner {
  /** modulation [steps, M] as in `modulationLayout`, context [T, hiddenSize]. */
  condition(
    feeds: ConditionerFeeds,
    deltas: Deltas,
  ): Promise<{ modulation: Float32Array; context: Float32Array }>;
  /**
   * The same with other weights for `changed` modules, which `locator` knows. It may share the rest with this one,
   * which must outlive it.
   */
  withWeights(locator: WeightLocator, changed: ReadonlySet<string>): Promise<Conditioner>;
  release(): Promise<void>;
}

/** What a denoising step is fed. */
export interface TokenPathFeeds {
  /** Packed latents [S, inChannels]. */
  latents: Rows;
  /** [T, hiddenSize]. */
  context: Rows;
  /** Of this step, [M]. */
  modulation: Rows;
  /** [T + S, headDim / 2]. */
  cos: Rows;
  sin: Rows;
}

/** The part of the transformer that runs once per step, wherever its weights are. */
export interface TokenPath {
  /** [S, outChannels]. */
  velocity(feeds: TokenPathFeeds, deltas: Deltas): Promise<Float32Array>;
  /** As {@link Conditioner.withWeights}. */
  withWeights(locator: WeightLocator, changed: ReadonlySet<string>): Promise<TokenPath>;
  release(): Promise<void>;
}

type Build = (locator: WeightLocator, adapted: ReadonlySet<string>) => GraphModel;

/** One graph that holds its weights. */
class ResidentPart {
  readonly #name: string;
  readonly #build: Build;
  readonly #options: SessionOptions;
  readonly session: AdaptedSession;

  private constructor(name: string, build: Build, options: SessionOptions, session: AdaptedSession) {
    this.#name = name;
    this.#build = build;
    this.#options = options;
    this.session = session;
  }

  static async load(
    name: string,
    build: Build,
    locator: WeightLocator,
    options: SessionOptions,
    adapted: ReadonlySet<string>,
  ): Promise<ResidentPart> {
    const session = await AdaptedSession.create(name, build(locator, adapted), options);
    return new ResidentPart(name, build, options, session);
  }

  async withWeights(locator: WeightLocator, changed: ReadonlySet<string>): Promise<ResidentPart> {
    if (this.session.uses(changed))
      return ResidentPart.load(this.#name, this.#build, locator, this.#options, new Set());
    return new ResidentPart(this.#name, this.#build, this.#options, this.session.shared());
  }
}

/** @param adapted modules for which each call will be given a LoRA */
export async function residentConditioner(
  spec: TransformerSpec,
  locator: WeightLocator,
  options: SessionOptions,
  adapted: ReadonlySet<string>,
): Promise<Conditioner> {
  const build: Build = (from, modules) => buildConditioner(spec, from, modules);
  const wrap = (part: ResidentPart): Conditioner => ({
    condition: async (feeds, deltas) => {
      const results = await part.session.run({ ...feeds }, ['modulation', 'context'], deltas);
      return { modulation: results.modulation.data, context: results.context.data };
    },
    withWeights: async (from, changed) => wrap(await part.withWeights(from, changed)),
    release: () => part.session.release(),
  });
  return wrap(await ResidentPart.load('conditioner', build, locator, options, adapted));
}

/** @param adapted modules for which each call will be given a LoRA */
export async function residentTokenPath(
  spec: TransformerSpec,
  locator: WeightLocator,
  options: SessionOptions,
  adapted: ReadonlySet<string>,
): Promise<TokenPath> {
  const build: Build = (from, modules) => buildTokenPath(spec, from, { adapted: modules });
  const wrap = (part: ResidentPart): TokenPath => ({
    velocity: async (feeds, deltas) =>
      (await part.session.run({ ...feeds }, ['velocity'], deltas)).velocity.data,
    withWeights: async (from, changed) => wrap(await part.withWeights(from, changed)),
    release: () => part.session.release(),
  });
  return wrap(await ResidentPart.load('token-path', build, locator, options, adapted));
}
