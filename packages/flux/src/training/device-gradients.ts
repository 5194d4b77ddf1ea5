import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { NO_DELTAS } from '../lora/compose.ts';
import { type Feed, flag, GraphSession, type SessionOptions } from '../runtime/session.ts';
import type { Conditioner } from '../transformer/parts.ts';
import { ropeTable } from '../transformer/rope.ts';
import { StreamedConditioner } from '../transformer/streamed-conditioner.ts';
import { timestepEmbedding } from '../transformer/timestep.ts';
import { buildTrainingGraph, GRADIENTS, trainedIn } from './device-graph.ts';
import {
  accumulate,
  type Condition,
  type Gradients,
  type LoraParameter,
  type TrainingSample,
} from './gradients.ts';

/**
 * Loss and LoRA gradients in one run per picture, with the token path in the memory of a device. The conditioner, 27 %
 * of FLUX.1's parameters, is not there: it passes through once for all conditions that are prepared together.
 */
export class DeviceGradients implements Gradients {
  readonly #spec: TransformerSpec;
  readonly #parameters: readonly LoraParameter[];
  readonly #session: GraphSession;
  /** Outputs with gradients. */
  readonly #blocks: readonly string[];
  readonly #conditioner: Conditioner;
  #rope: { sizes: string; table: ReturnType<typeof ropeTable> } | null = null;
  #prepared: { conditions: readonly Condition[]; modulation: Float32Array } | null = null;

  private constructor(
    spec: TransformerSpec,
    parameters: readonly LoraParameter[],
    session: GraphSession,
    blocks: readonly string[],
    conditioner: Conditioner,
  ) {
    this.#spec = spec;
    this.#parameters = parameters;
    this.#session = session;
    this.#blocks = blocks;
    this.#conditioner = conditioner;
  }

  /** @param weights of the transformer, in any type that graphs widen; fp8 stays fp8 in memory */
  static async load(
    spec: TransformerSpec,
    weights: WeightLocator,
    parameters: readonly LoraParameter[],
    compute: ComputeType,
    options: SessionOptions,
  ): Promise<DeviceGradients> {
    const graph = buildTrainingGraph(spec, weights, parameters, compute).build();
    const session = await GraphSession.create('training', graph, options);
    const blocks = graph.outputs.flatMap(({ name }) => (name.startsWith(GRADIENTS) ? [name] : []));
    const conditioner = new StreamedConditioner(spec, weights, options);
    return new DeviceGradients(spec, parameters, session, blocks, conditioner);
  }

  /** Without `weight` there is no backward pass. */
  async loss(sample: TrainingSample, weight?: number): Promise<number> {
    const blocks = weight === undefined ? [] : this.#blocks;
    const results = await this.#session.run(await this.#feeds(sample, weight), ['loss', ...blocks]);
    for (const name of blocks) this.#collect(name, results[name]!.data);
    return results['loss']!.data[0]!;
  }

  async prepare(conditions: readonly Condition[]): Promise<void> {
    const { timestepDim, pooledDim, jointDim, guidanceEmbeds } = this.#spec;
    const rows = conditions.length;
    const embed = (values: number[]): Feed & { data: Float32Array } => ({
      data: timestepEmbedding(Float32Array.from(values), timestepDim),
      dims: [rows, timestepDim],
    });
    const pooled = new Float32Array(rows * pooledDim);
    conditions.forEach((condition, i) => pooled.set(condition.pooled, i * pooledDim));
    this.#prepared = null;
    const { modulation } = await this.#conditioner.condition(
      {
        time: embed(conditions.map(({ sigma }) => sigma)),
        pooled: { data: pooled, dims: [rows, pooledDim] },
        // Its part of the conditioner is in the training graph, where it serves every caption.
        text: { data: new Float32Array(jointDim), dims: [1, jointDim] },
        ...(guidanceEmbeds ? { guidance: embed(conditions.map(({ guidance }) => guidance)) } : {}),
      },
      NO_DELTAS,
    );
    this.#prepared = { conditions, modulation };
  }

  async release(): Promise<void> {
    await this.#session.release();
    await this.#conditioner.release();
  }

  async #feeds(sample: TrainingSample, weight: number | undefined): Promise<Record<string, Feed>> {
    const { inChannels, outChannels, jointDim, headDim } = this.#spec;
    const { noisy, target, text, grid } = sample;
    const textTokens = text.length / jointDim;
    const imageTokens = noisy.length / inChannels;
    const { cos, sin } = this.#angles(textTokens, grid);
    const angles = [textTokens + imageTokens, headDim / 2];
    const modulation = await this.#modulation(sample);
    const matrices = this.#parameters.flatMap(({ module, rank, inFeatures, outFeatures, down, up }) => [
      [`${module}.down`, { data: down, dims: [rank, inFeatures] }],
      [`${module}.up`, { data: up, dims: [outFeatures, rank] }],
    ]);
    return {
      latents: { data: noisy, dims: [imageTokens, inChannels] },
      target: { data: target, dims: [imageTokens, outChannels] },
      text: { data: text, dims: [textTokens, jointDim] },
      modulation: { data: modulation, dims: [modulation.length] },
      cos: { data: cos, dims: angles },
      sin: { data: sin, dims: angles },
      slope: { data: Float32Array.of(weight ?? 0), dims: [] },
      forward: flag(true),
      backward: flag(weight !== undefined),
      ...(Object.fromEntries(matrices) as Record<string, Feed>),
    };
  }

  /** Kept for the sizes of the latest picture, which the next one often shares. */
  #angles(textTokens: number, { height, width }: TrainingSample['grid']): ReturnType<typeof ropeTable> {
    const sizes = [textTokens, height, width].join();
    if (this.#rope?.sizes !== sizes)
      this.#rope = { sizes, table: ropeTable(this.#spec, textTokens, height, width) };
    return this.#rope.table;
  }

  /** Those of a sample that was not prepared are computed for it alone. */
  async #modulation(sample: TrainingSample): Promise<Float32Array> {
    const find = (): Float32Array | null => {
      if (!this.#prepared) return null;
      const { conditions, modulation } = this.#prepared;
      const row = conditions.findIndex(
        ({ sigma, guidance, pooled }) =>
          sigma === sample.sigma && guidance === sample.guidance && pooled === sample.pooled,
      );
      const size = modulation.length / conditions.length;
      return row < 0 ? null : modulation.subarray(row * size, (row + 1) * size);
    };
    const found = find();
    if (found) return found;
    await this.prepare([sample]);
    return find()!;
  }

  #collect(output: string, gradients: Float32Array): void {
    let at = 0;
    const next = (into: Float32Array, factor: number): void => {
      accumulate(into, gradients.subarray(at, at + into.length), factor);
      at += into.length;
    };
    for (const { downGradient, upGradient, scale } of trainedIn(
      this.#parameters,
      output.slice(GRADIENTS.length),
    )) {
      next(downGradient, 1);
      next(upGradient, scale);
    }
  }
}
