import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { GraphModel } from '../graph/builder.ts';
import type { WeightLocator } from '../graph/weights.ts';
import type { WeightedDeltas } from '../graph/device-lora.ts';
import { type Deltas, NO_DELTAS } from '../lora/compose.ts';
import { AdaptedSession } from '../runtime/adapted-session.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { buildConditioner, isConditionerModule } from './conditioner.ts';
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
  /** [steps, timestepDim], or one row for all. */
  guidance?: Rows;
  /** [steps, pooledDim], or one row for all. */
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

/** What denoising steps are fed. */
export interface TokenPathFeeds {
  /** Packed latents [S, inChannels]. */
  latents: Rows;
  /** [T, hiddenSize]. */
  context: Rows;
  /** A row per step, [K, M]. */
  modulation: Rows;
  /** [T + S, headDim / 2]. */
  cos: Rows;
  sin: Rows;
}

/** The LoRAs of a job. */
export interface Adaptation {
  /** Laid together, for the modules that take one so. */
  deltas: Deltas;
  /** One by one, for a token path that lays them together itself. */
  parts: readonly WeightedDeltas[];
}

export const NO_ADAPTATION: Adaptation = Object.freeze({ deltas: NO_DELTAS, parts: [] });

/** The part of the transformer that runs once per step, wherever its weights are. */
export interface TokenPath {
  /** Latents [S, outChannels] after an Euler step x += length * velocity(x) for every row of modulations. */
  advance(feeds: TokenPathFeeds, lengths: Float32Array, adaptation: Adaptation): Promise<Float32Array>;
  /** How many steps `advance` should be given at once; `tokens` is S. */
  stepsPerRun(tokens: number, parts: readonly WeightedDeltas[]): number;
  /** As {@link Conditioner.withWeights}. */
  withWeights(locator: WeightLocator, changed: ReadonlySet<string>): Promise<TokenPath>;
  release(): Promise<void>;
}

/** {@link TokenPath.advance} for a graph that computes one velocity at a time; `velocity` gets one row of modulations. */
export async function eulerSteps(
  feeds: TokenPathFeeds,
  lengths: Float32Array,
  velocity: (feeds: TokenPathFeeds) => Promise<Float32Array>,
): Promise<Float32Array> {
  const { latents, modulation } = feeds;
  const size = modulation.data.length / lengths.length;
  const x = latents.data.slice();
  for (const [i, length] of lengths.entries()) {
    const row = { data: modulation.data.subarray(i * size, (i + 1) * size), dims: [size] };
    const slope = await velocity({ ...feeds, latents: { ...latents, data: x }, modulation: row });
    for (let j = 0; j < x.length; j++) x[j] = x[j]! + Math.fround(length * slope[j]!);
  }
  return x;
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

/** A conditioner that takes LoRAs for `adapted` modules alone, with another one for jobs whose LoRAs change others. */
export function withFallback(
  first: Conditioner,
  adapted: ReadonlySet<string>,
  fallback: Conditioner,
): Conditioner {
  return {
    condition: (feeds, deltas) => {
      const isKnown = [...deltas.keys()].every(
        (module) => adapted.has(module) || !isConditionerModule(module),
      );
      return (isKnown ? first : fallback).condition(feeds, deltas);
    },
    withWeights: async (locator, changed) =>
      withFallback(
        await first.withWeights(locator, changed),
        adapted,
        await fallback.withWeights(locator, changed),
      ),
    release: async () => {
      await first.release();
      await fallback.release();
    },
  };
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
    advance: (feeds, lengths, { deltas }) =>
      eulerSteps(
        feeds,
        lengths,
        async (step) => (await part.session.run({ ...step }, ['velocity'], deltas)).velocity.data,
      ),
    stepsPerRun: () => 1,
    withWeights: async (from, changed) => wrap(await part.withWeights(from, changed)),
    release: () => part.session.release(),
  });
  return wrap(await ResidentPart.load('token-path', build, locator, options, adapted));
}
