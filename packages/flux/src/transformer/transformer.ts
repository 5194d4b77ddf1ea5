import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { type Deltas, NO_DELTAS } from '../lora/compose.ts';
import { AdaptedSession } from '../runtime/adapted-session.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { buildConditioner } from './conditioner.ts';
import { modulationLayout } from './modulation.ts';
import { ropeTable } from './rope.ts';
import { timestepEmbedding } from './timestep.ts';
import { buildTokenPath } from './token-path.ts';

export interface ConditioningInput {
  /** T5 hidden states [T, jointDim]. */
  text: Float32Array;
  /** CLIP's pooled output [1, pooledDim]. */
  pooled: Float32Array;
  guidance: number;
  /** Noise level of each step that will be run. */
  sigmas: Float32Array;
  /** Image tokens per column and row. */
  grid: { height: number; width: number };
}

/** Everything that the steps of one job share. */
export interface Conditioning {
  /** Text tokens at the width of the transformer, [T, hiddenSize]. */
  context: Float32Array;
  /** Modulations, a row per step: [steps, modulationSize]. */
  modulation: Float32Array;
  cos: Float32Array;
  sin: Float32Array;
  textTokens: number;
  imageTokens: number;
  /** LoRA of the adapted modules, fed to every step. */
  deltas: Deltas;
}

/** FLUX's transformer as its two graphs: the conditioner, run once per job, and the token path, run once per step. */
export class Transformer {
  readonly spec: TransformerSpec;
  readonly #conditioner: AdaptedSession;
  readonly #tokenPath: AdaptedSession;
  readonly #modulationSize: number;

  private constructor(spec: TransformerSpec, conditioner: AdaptedSession, tokenPath: AdaptedSession) {
    this.spec = spec;
    this.#conditioner = conditioner;
    this.#tokenPath = tokenPath;
    this.#modulationSize = modulationLayout(spec).size;
  }

  /** @param adapted modules for which `condition` will be given a LoRA */
  static async load(
    spec: TransformerSpec,
    locator: WeightLocator,
    options: SessionOptions,
    adapted: ReadonlySet<string> = new Set(),
  ): Promise<Transformer> {
    return new Transformer(
      spec,
      await AdaptedSession.create('conditioner', buildConditioner(spec, locator, adapted), options),
      await AdaptedSession.create('token-path', buildTokenPath(spec, locator, { adapted }), options),
    );
  }

  /**
   * The same transformer with other weights for `changed` modules, which `locator` knows. A graph that uses none of
   * them is shared with this one, which must outlive the result.
   */
  async withWeights(
    locator: WeightLocator,
    changed: ReadonlySet<string>,
    options: SessionOptions,
  ): Promise<Transformer> {
    return new Transformer(
      this.spec,
      this.#conditioner.uses(changed)
        ? await AdaptedSession.create('conditioner', buildConditioner(this.spec, locator), options)
        : this.#conditioner.shared(),
      this.#tokenPath.uses(changed)
        ? await AdaptedSession.create('token-path', buildTokenPath(this.spec, locator), options)
        : this.#tokenPath.shared(),
    );
  }

  /** @param deltas the LoRA of every adapted module */
  async condition(input: ConditioningInput, deltas: Deltas = NO_DELTAS): Promise<Conditioning> {
    const { jointDim, pooledDim, timestepDim, guidanceEmbeds } = this.spec;
    const textTokens = input.text.length / jointDim;
    // diffusers divides its timesteps by 1000 before the transformer multiplies them again; both roundings count.
    const time = input.sigmas.map((sigma) => Math.fround(sigma * 1000) / 1000);
    const guidance = Float32Array.of(input.guidance);
    const { modulation, context } = await this.#conditioner.run(
      {
        time: { data: timestepEmbedding(time, timestepDim), dims: [time.length, timestepDim] },
        pooled: { data: input.pooled, dims: [1, pooledDim] },
        text: { data: input.text, dims: [textTokens, jointDim] },
        ...(guidanceEmbeds
          ? { guidance: { data: timestepEmbedding(guidance, timestepDim), dims: [1, timestepDim] } }
          : {}),
      },
      ['modulation', 'context'],
      deltas,
    );
    return {
      context: context.data,
      modulation: modulation.data,
      ...ropeTable(this.spec, textTokens, input.grid.height, input.grid.width),
      textTokens,
      imageTokens: input.grid.height * input.grid.width,
      deltas,
    };
  }

  /** Velocity [S, outChannels] at packed latents [S, inChannels], with the modulations of step `step`. */
  async velocity(latents: Float32Array, conditioning: Conditioning, step: number): Promise<Float32Array> {
    const { inChannels, hiddenSize, headDim } = this.spec;
    const { context, modulation, cos, sin, textTokens, imageTokens } = conditioning;
    const size = this.#modulationSize;
    const angles = [textTokens + imageTokens, headDim / 2];
    const { velocity } = await this.#tokenPath.run(
      {
        latents: { data: latents, dims: [imageTokens, inChannels] },
        context: { data: context, dims: [textTokens, hiddenSize] },
        modulation: { data: modulation.subarray(step * size, (step + 1) * size), dims: [size] },
        cos: { data: cos, dims: angles },
        sin: { data: sin, dims: angles },
      },
      ['velocity'],
      conditioning.deltas,
    );
    return velocity.data;
  }

  async release(): Promise<void> {
    await this.#conditioner.release();
    await this.#tokenPath.release();
  }
}
