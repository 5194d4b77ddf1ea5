import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { type Deltas, NO_DELTAS } from '../lora/compose.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { modulationLayout } from './modulation.ts';
import { type Conditioner, residentConditioner, residentTokenPath, type TokenPath } from './parts.ts';
import { ropeTable } from './rope.ts';
import { StreamedConditioner } from './streamed-conditioner.ts';
import { StreamedTokenPath } from './streamed-token-path.ts';
import { timestepEmbedding } from './timestep.ts';

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

/** Which halves of the transformer hold no weights but read them from the checkpoint whenever they run. */
export interface StreamedParts {
  conditioner?: boolean;
  /** What the token path computes in; absent when it is resident. */
  tokenPath?: ComputeType;
}

/** FLUX's transformer in its two halves: the conditioner, run once per job, and the token path, run once per step. */
export class Transformer {
  readonly spec: TransformerSpec;
  readonly #conditioner: Conditioner;
  readonly #tokenPath: TokenPath;
  readonly #modulationSize: number;

  private constructor(spec: TransformerSpec, conditioner: Conditioner, tokenPath: TokenPath) {
    this.spec = spec;
    this.#conditioner = conditioner;
    this.#tokenPath = tokenPath;
    this.#modulationSize = modulationLayout(spec).size;
  }

  /** @param adapted modules for which `condition` will be given a LoRA; streamed parts take one for any module */
  static async load(
    spec: TransformerSpec,
    locator: WeightLocator,
    options: SessionOptions,
    adapted: ReadonlySet<string> = new Set(),
    streamed: StreamedParts = {},
  ): Promise<Transformer> {
    return new Transformer(
      spec,
      streamed.conditioner
        ? new StreamedConditioner(spec, locator, options)
        : await residentConditioner(spec, locator, options, adapted),
      streamed.tokenPath
        ? new StreamedTokenPath(spec, locator, streamed.tokenPath, options)
        : await residentTokenPath(spec, locator, options, adapted),
    );
  }

  /**
   * The same transformer with other weights for `changed` modules, which `locator` knows. A half that has none of
   * them is shared with this one, which must outlive the result.
   */
  async withWeights(locator: WeightLocator, changed: ReadonlySet<string>): Promise<Transformer> {
    return new Transformer(
      this.spec,
      await this.#conditioner.withWeights(locator, changed),
      await this.#tokenPath.withWeights(locator, changed),
    );
  }

  /** @param deltas the LoRA of every adapted module */
  async condition(input: ConditioningInput, deltas: Deltas = NO_DELTAS): Promise<Conditioning> {
    const { jointDim, pooledDim, timestepDim, guidanceEmbeds } = this.spec;
    const textTokens = input.text.length / jointDim;
    // diffusers divides its timesteps by 1000 before the transformer multiplies them again; both roundings count.
    const time = input.sigmas.map((sigma) => Math.fround(sigma * 1000) / 1000);
    const guidance = Float32Array.of(input.guidance);
    const { modulation, context } = await this.#conditioner.condition(
      {
        time: { data: timestepEmbedding(time, timestepDim), dims: [time.length, timestepDim] },
        pooled: { data: input.pooled, dims: [1, pooledDim] },
        text: { data: input.text, dims: [textTokens, jointDim] },
        ...(guidanceEmbeds
          ? { guidance: { data: timestepEmbedding(guidance, timestepDim), dims: [1, timestepDim] } }
          : {}),
      },
      deltas,
    );
    return {
      context,
      modulation,
      ...ropeTable(this.spec, textTokens, input.grid.height, input.grid.width),
      textTokens,
      imageTokens: input.grid.height * input.grid.width,
      deltas,
    };
  }

  /** Velocity [S, outChannels] at packed latents [S, inChannels], with the modulations of step `step`. */
  velocity(latents: Float32Array, conditioning: Conditioning, step: number): Promise<Float32Array> {
    const { inChannels, hiddenSize, headDim } = this.spec;
    const { context, modulation, cos, sin, textTokens, imageTokens } = conditioning;
    const size = this.#modulationSize;
    const angles = [textTokens + imageTokens, headDim / 2];
    return this.#tokenPath.velocity(
      {
        latents: { data: latents, dims: [imageTokens, inChannels] },
        context: { data: context, dims: [textTokens, hiddenSize] },
        modulation: { data: modulation.subarray(step * size, (step + 1) * size), dims: [size] },
        cos: { data: cos, dims: angles },
        sin: { data: sin, dims: angles },
      },
      conditioning.deltas,
    );
  }

  async release(): Promise<void> {
    await this.#conditioner.release();
    await this.#tokenPath.release();
  }
}
