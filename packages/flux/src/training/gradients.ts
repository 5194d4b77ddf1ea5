import { open, type FileHandle } from 'node:fs/promises';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { GraphModel } from '../graph/builder.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { NO_DELTAS } from '../lora/compose.ts';
import { AdaptedSession } from '../runtime/adapted-session.ts';
import { type Feed, GraphSession, type SessionOptions } from '../runtime/session.ts';
import { buildConditioner } from '../transformer/conditioner.ts';
import { modulationLayout, type ModulationSlot } from '../transformer/modulation.ts';
import { ropeTable } from '../transformer/rope.ts';
import { timestepEmbedding } from '../transformer/timestep.ts';
import {
  buildDoubleBlock,
  buildHead,
  buildSingleBlock,
  buildStem,
  GRADIENT,
  MODULATION,
  WEIGHT,
} from './block-graphs.ts';
import type { TargetModule } from './targets.ts';

/** One trained module: y += scale · (x downᵀ) upᵀ. Gradients are added up until somebody clears them. */
export interface LoraParameter extends TargetModule {
  rank: number;
  scale: number;
  /** [rank, inFeatures] and [outFeatures, rank]. */
  down: Float32Array;
  up: Float32Array;
  downGradient: Float32Array;
  upGradient: Float32Array;
}

/** What the loss of one picture is computed from. */
export interface TrainingSample {
  /** Packed latents at noise level sigma, and noise - latents: [S, inChannels]. */
  noisy: Float32Array;
  target: Float32Array;
  sigma: number;
  guidance: number;
  text: Float32Array;
  pooled: Float32Array;
  grid: { height: number; width: number };
}

/** What the modulations of a picture depend on. */
export type Condition = Pick<TrainingSample, 'sigma' | 'guidance' | 'pooled'>;

/** Loss and LoRA gradients of a frozen transformer, wherever it runs. */
export interface Gradients {
  /**
   * Mean squared error of the predicted velocity. With `weight` its gradient, times that factor, is added to the
   * parameters' gradients. These are not finite where fp16 was too small for them.
   */
  loss(sample: TrainingSample, weight?: number): Promise<number>;
  /** Announces what the next samples are conditioned on, where computing that for many at once is cheaper. */
  prepare(conditions: readonly Condition[]): Promise<void>;
  release(): Promise<void>;
}

interface Block {
  kind: 'double' | 'single';
  index: number;
}

const PATHS = { double: 'transformer_blocks', single: 'single_transformer_blocks' } as const;

/**
 * Loss and LoRA gradients of a frozen transformer, block by block: the forward pass keeps the input of each block,
 * the backward pass computes each block anew. Weights are fed as inputs, so the base may be of any type and its
 * sessions hold no copy.
 */
export class LoraGradients implements Gradients {
  readonly #spec: TransformerSpec;
  readonly #weights: WeightReader;
  readonly #parameters: ReadonlyMap<string, LoraParameter>;
  readonly #sessions: Record<string, TrainingSession>;
  readonly #conditioner: AdaptedSession;
  readonly #slots: ReadonlyMap<string, ModulationSlot>;

  private constructor(
    spec: TransformerSpec,
    weights: WeightReader,
    parameters: readonly LoraParameter[],
    sessions: Record<string, TrainingSession>,
    conditioner: AdaptedSession,
  ) {
    this.#spec = spec;
    this.#weights = weights;
    this.#parameters = new Map(parameters.map((parameter) => [parameter.module, parameter]));
    this.#sessions = sessions;
    this.#conditioner = conditioner;
    this.#slots = new Map(modulationLayout(spec).slots.map((slot) => [slot.name, slot]));
  }

  /** @param weights in fp32 */
  static async load(
    spec: TransformerSpec,
    weights: WeightLocator,
    parameters: readonly LoraParameter[],
    options: SessionOptions,
  ): Promise<LoraGradients> {
    const adapted = new Set(parameters.map(({ module }) => module));
    const graphs = {
      stem: buildStem(spec, weights),
      head: buildHead(spec, weights),
      'double.forward': buildDoubleBlock(spec, weights, adapted, 'forward'),
      'double.backward': buildDoubleBlock(spec, weights, adapted, 'backward'),
      'single.forward': buildSingleBlock(spec, weights, adapted, 'forward'),
      'single.backward': buildSingleBlock(spec, weights, adapted, 'backward'),
    };
    const sessions: Record<string, TrainingSession> = {};
    const own: SessionOptions = { ...options, spinning: false };
    for (const [name, graph] of Object.entries(graphs))
      sessions[name] = await TrainingSession.create(name, graph, own);
    const conditioner = await AdaptedSession.create('conditioner', buildConditioner(spec, weights), own);
    return new LoraGradients(spec, new WeightReader(weights), parameters, sessions, conditioner);
  }

  /** Without `weight` only the forward pass runs. */
  async loss(sample: TrainingSample, weight?: number): Promise<number> {
    const { hiddenSize, inChannels, outChannels } = this.#spec;
    const { modulation, context } = await this.#condition(sample);
    const textTokens = context.length / hiddenSize;
    const imageTokens = sample.noisy.length / inChannels;
    const rope = ropeTable(this.#spec, textTokens, sample.grid.height, sample.grid.width);
    const angles = [textTokens + imageTokens, this.#spec.headDim / 2];
    const shared = { cos: { data: rope.cos, dims: angles }, sin: { data: rope.sin, dims: angles } };
    const rows = (data: Float32Array): Feed => ({ data, dims: [data.length / hiddenSize, hiddenSize] });

    const stem = await this.#run('stem', null, modulation, {
      latents: { data: sample.noisy, dims: [imageTokens, inChannels] },
    });
    const kept: { block: Block; inputs: Record<string, Feed> }[] = [];
    let state: Record<string, Float32Array> = { img: stem['img']!, txt: context };
    for (const block of this.#blocks()) {
      if (block.kind === 'single' && block.index === 0)
        state = { joint: concat(state['txt']!, state['img']!) };
      const inputs = Object.fromEntries(Object.entries(state).map(([name, data]) => [name, rows(data)]));
      kept.push({ block, inputs });
      const out = await this.#run(`${block.kind}.forward`, block, modulation, { ...inputs, ...shared });
      state = Object.fromEntries(Object.keys(state).map((name) => [name, out[`${name}.out`]!]));
    }
    const joint = state['joint'] ?? concat(state['txt']!, state['img']!);
    const factor = weight ?? 1;
    const head = await this.#run('head', null, modulation, {
      joint: rows(joint),
      txt: rows(context),
      target: { data: sample.target, dims: [imageTokens, outChannels] },
      scale: { data: Float32Array.of((2 * factor) / sample.target.length), dims: [] },
    });
    const loss = meanSquaredError(head['velocity']!, sample.target);
    if (weight === undefined) return loss;

    let slope: Record<string, Float32Array> = { joint: head[`joint${GRADIENT}`]! };
    for (const { block, inputs } of kept.toReversed()) {
      if (block.kind === 'double' && slope['joint']) {
        const cut = context.length;
        slope = { txt: slope['joint'].subarray(0, cut), img: slope['joint'].subarray(cut) };
      }
      const seeds = Object.fromEntries(
        Object.entries(slope).map(([name, data]) => [`${name}.out${GRADIENT}`, rows(data)]),
      );
      const out = await this.#run(`${block.kind}.backward`, block, modulation, {
        ...inputs,
        ...shared,
        ...seeds,
      });
      slope = Object.fromEntries(Object.keys(slope).map((name) => [name, out[`${name}${GRADIENT}`]!]));
      this.#collect(block, out);
    }
    return loss;
  }

  /** The conditioner is in memory and cheap beside a block on the host. */
  async prepare(): Promise<void> {}

  async release(): Promise<void> {
    for (const session of Object.values(this.#sessions)) await session.release();
    await this.#conditioner.release();
    await this.#weights.close();
  }

  #blocks(): Block[] {
    const of = (kind: Block['kind'], count: number): Block[] =>
      Array.from({ length: count }, (_, index) => ({ kind, index }));
    return [...of('double', this.#spec.doubleBlocks), ...of('single', this.#spec.singleBlocks)];
  }

  async #condition(sample: TrainingSample): Promise<{ modulation: Float32Array; context: Float32Array }> {
    const { timestepDim, pooledDim, jointDim, guidanceEmbeds } = this.#spec;
    const embed = (value: number): Feed => ({
      data: timestepEmbedding(Float32Array.of(value), timestepDim),
      dims: [1, timestepDim],
    });
    const { modulation, context } = await this.#conditioner.run(
      {
        time: embed(sample.sigma),
        pooled: { data: sample.pooled, dims: [1, pooledDim] },
        text: { data: sample.text, dims: [sample.text.length / jointDim, jointDim] },
        ...(guidanceEmbeds ? { guidance: embed(sample.guidance) } : {}),
      },
      ['modulation', 'context'],
      NO_DELTAS,
    );
    return { modulation: modulation.data, context: context.data };
  }

  /** Runs a session with what its graph's other inputs stand for in `block`. */
  async #run(
    name: string,
    block: Block | null,
    modulation: Float32Array,
    feeds: Record<string, Feed>,
  ): Promise<Record<string, Float32Array>> {
    const session = this.#sessions[name]!;
    const all: Record<string, Feed> = { ...feeds };
    for (const input of session.inputs) {
      if (input in all) continue;
      all[input] = await this.#feed(input, block, modulation);
    }
    return session.run(all);
  }

  async #feed(input: string, block: Block | null, modulation: Float32Array): Promise<Feed> {
    if (input.startsWith(WEIGHT)) return this.#weights.read(inBlock(input.slice(WEIGHT.length), block));
    if (input.startsWith(MODULATION)) {
      const { offset, size } = this.#slots.get(inBlock(input.slice(MODULATION.length), block))!;
      return { data: modulation.subarray(offset, offset + size), dims: [size] };
    }
    const side = input.endsWith('.down') ? 'down' : 'up';
    const parameter = this.#parameters.get(inBlock(input.slice(0, -side.length - 1), block))!;
    const { rank, inFeatures, outFeatures, down, up, scale } = parameter;
    return side === 'down'
      ? { data: down, dims: [rank, inFeatures] }
      : { data: up.map((value) => value * scale), dims: [outFeatures, rank] };
  }

  #collect(block: Block, results: Record<string, Float32Array>): void {
    for (const [name, gradient] of Object.entries(results)) {
      const match = /^(.*)\.(down|up)\.gradient$/.exec(name);
      if (!match) continue;
      const parameter = this.#parameters.get(inBlock(match[1]!, block))!;
      if (match[2] === 'down') accumulate(parameter.downGradient, gradient, 1);
      else accumulate(parameter.upGradient, gradient, parameter.scale);
    }
  }
}

/** A session that returns all of its graph's outputs. */
class TrainingSession {
  readonly inputs: readonly string[];
  readonly #session: GraphSession;
  readonly #outputs: readonly string[];

  private constructor(session: GraphSession, graph: GraphModel) {
    this.#session = session;
    this.inputs = graph.inputs.map(({ name }) => name);
    this.#outputs = graph.outputs.map(({ name }) => name);
  }

  static async create(name: string, graph: GraphModel, options: SessionOptions): Promise<TrainingSession> {
    // The optimiser's common-subexpression elimination would undo the recomputation.
    return new TrainingSession(
      await GraphSession.create(name, graph, { ...options, optimization: 'disabled' }),
      graph,
    );
  }

  async run(feeds: Record<string, Feed>): Promise<Record<string, Float32Array>> {
    const results = await this.#session.run(feeds, this.#outputs);
    return Object.fromEntries(Object.entries(results).map(([name, { data }]) => [name, data]));
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}

/** fp32 weights by canonical name, read once. */
class WeightReader {
  readonly #locator: WeightLocator;
  readonly #known = new Map<string, Feed>();
  #file: { path: string; handle: FileHandle } | null = null;

  constructor(locator: WeightLocator) {
    this.#locator = locator;
  }

  async read(name: string): Promise<Feed> {
    const known = this.#known.get(name);
    if (known) return known;
    const { file, offset, byteLength, shape, dtype } = this.#locator.locate(name);
    if (dtype !== 'F32') throw new Error(`${name} is ${dtype}; training reads fp32`);
    const { handle } = await this.#open(file);
    const data = new Float32Array(byteLength / 4);
    await handle.read(data, 0, byteLength, offset);
    const feed = { data, dims: shape };
    this.#known.set(name, feed);
    return feed;
  }

  async close(): Promise<void> {
    await this.#file?.handle.close();
    this.#file = null;
  }

  async #open(path: string): Promise<{ path: string; handle: FileHandle }> {
    if (this.#file?.path === path) return this.#file;
    await this.close();
    return (this.#file = { path, handle: await open(path) });
  }
}

/** A name of block 0 in another block. */
function inBlock(name: string, block: Block | null): string {
  return block === null
    ? name
    : name.replace(`${PATHS[block.kind]}.0.`, `${PATHS[block.kind]}.${block.index}.`);
}

function concat(a: Float32Array, b: Float32Array): Float32Array {
  const out = new Float32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}

/** into += values * factor */
export function accumulate(into: Float32Array, values: Float32Array, factor: number): void {
  for (let i = 0; i < into.length; i++) into[i]! += values[i]! * factor;
}

function meanSquaredError(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i]! - b[i]!) ** 2;
  return sum / a.length;
}
