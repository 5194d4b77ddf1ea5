import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { DeviceTokenPath, type StepRoom } from './device-token-path.ts';
import { modulationLayout } from './modulation.ts';
import {
  type Adaptation,
  type Conditioner,
  NO_ADAPTATION,
  residentConditioner,
  residentTokenPath,
  type TokenPath,
  withFallback,
} from './parts.ts';
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
  /** Noise level before each step that will be run, and after the last. */
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
  /** Of each step: its noise level afterwards minus that before. */
  lengths: Float32Array;
  cos: Float32Array;
  sin: Float32Array;
  textTokens: number;
  imageTokens: number;
  /** LoRAs, fed to every step. */
  adaptation: Adaptation;
}

/** Where the halves of a transformer are. */
export interface TransformerPlan {
  conditioner: 'resident' | 'streamed';
  tokenPath: 'resident' | 'streamed' | 'device';
  /** What a token path that is not 'resident' computes in. */
  compute: ComputeType;
  /** For a 'device' token path where memory is scarce; what is streamed frees the reserve. */
  room?: StepRoom;
}

const ON_HOST: TransformerPlan = { conditioner: 'resident', tokenPath: 'resident', compute: 'float32' };

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

  /** @param adapted modules for which `condition` will be given a LoRA; parts that are not resident take any */
  static async load(
    spec: TransformerSpec,
    locator: WeightLocator,
    options: SessionOptions,
    adapted: ReadonlySet<string> = new Set(),
    plan: TransformerPlan = ON_HOST,
  ): Promise<Transformer> {
    const { room } = plan;
    const brief = { ...options, ...(room ? { reserve: room.reserve } : {}) };
    const streamed = new StreamedConditioner(spec, locator, brief);
    const conditioner =
      plan.conditioner === 'streamed'
        ? streamed
        : withFallback(await residentConditioner(spec, locator, options, adapted), adapted, streamed);
    return new Transformer(spec, conditioner, await loadTokenPath(spec, locator, options, adapted, plan));
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

  /** @param adaptation with a LoRA for every adapted module */
  async condition(input: ConditioningInput, adaptation: Adaptation = NO_ADAPTATION): Promise<Conditioning> {
    const { jointDim, pooledDim, timestepDim, guidanceEmbeds } = this.spec;
    const textTokens = input.text.length / jointDim;
    // diffusers divides its timesteps by 1000 before the transformer multiplies them again; both roundings count.
    const time = input.sigmas.subarray(0, -1).map((sigma) => Math.fround(sigma * 1000) / 1000);
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
      adaptation.deltas,
    );
    return {
      context,
      modulation,
      lengths: input.sigmas.subarray(1).map((sigma, i) => sigma - input.sigmas[i]!),
      ...ropeTable(this.spec, textTokens, input.grid.height, input.grid.width),
      textTokens,
      imageTokens: input.grid.height * input.grid.width,
      adaptation,
    };
  }

  /** How many steps {@link advance} should be asked for at once. */
  stepsPerRun({ imageTokens, adaptation }: Conditioning): number {
    return this.#tokenPath.stepsPerRun(imageTokens, adaptation.parts);
  }

  /** Packed latents [S, outChannels] after the Euler steps [first, end), from those before them. */
  advance(
    latents: Float32Array,
    conditioning: Conditioning,
    first: number,
    end: number,
  ): Promise<Float32Array> {
    const { lengths } = conditioning;
    return this.#run(latents, conditioning, first, end, lengths.subarray(first, end));
  }

  /** Velocity [S, outChannels] at packed latents [S, inChannels], with the modulations of step `step`. */
  async velocity(latents: Float32Array, conditioning: Conditioning, step: number): Promise<Float32Array> {
    const moved = await this.#run(latents, conditioning, step, step + 1, Float32Array.of(1));
    return moved.map((value, i) => value - latents[i]!);
  }

  #run(
    latents: Float32Array,
    conditioning: Conditioning,
    first: number,
    end: number,
    lengths: Float32Array,
  ): Promise<Float32Array> {
    const { inChannels, hiddenSize, headDim } = this.spec;
    const { context, modulation, cos, sin, textTokens, imageTokens, adaptation } = conditioning;
    const size = this.#modulationSize;
    const angles = [textTokens + imageTokens, headDim / 2];
    return this.#tokenPath.advance(
      {
        latents: { data: latents, dims: [imageTokens, inChannels] },
        context: { data: context, dims: [textTokens, hiddenSize] },
        modulation: { data: modulation.subarray(first * size, end * size), dims: [end - first, size] },
        cos: { data: cos, dims: angles },
        sin: { data: sin, dims: angles },
      },
      lengths,
      adaptation,
    );
  }

  async release(): Promise<void> {
    await this.#conditioner.release();
    await this.#tokenPath.release();
  }
}

async function loadTokenPath(
  spec: TransformerSpec,
  locator: WeightLocator,
  options: SessionOptions,
  adapted: ReadonlySet<string>,
  { tokenPath, compute, room }: TransformerPlan,
): Promise<TokenPath> {
  switch (tokenPath) {
    case 'resident':
      return residentTokenPath(spec, locator, options, adapted);
    case 'device':
      return DeviceTokenPath.load(spec, locator, compute, options, room);
    case 'streamed':
      return new StreamedTokenPath(spec, locator, compute, options);
    default:
      return tokenPath satisfies never;
  }
}
