import type { GraphBuilder, Value } from '../graph/builder.ts';
import { cast, split } from '../graph/ops.ts';
import type { ComputeType } from '../graph/weights.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';

/** Chunks of one modulation in the order of the weights' rows; `scale` ones are used as 1 + scale. */
export const DOUBLE_CHUNKS = ['shift', 'scale', 'gate', 'shift', 'scale', 'gate'] as const;
export const SINGLE_CHUNKS = ['shift', 'scale', 'gate'] as const;
export const FINAL_CHUNKS = ['shift', 'scale'] as const;
export type Chunk = 'shift' | 'scale' | 'gate';

/** One adaLN modulation: the module it belongs to, its chunks, and the linear modules that compute them in order. */
export interface ModulationSlot {
  name: string;
  chunks: readonly Chunk[];
  linears: readonly string[];
  /** First value of this slot in a row of modulations. */
  offset: number;
  size: number;
}

/**
 * All modulations of one forward pass laid end to end: what the conditioner writes and the token path reads.
 * 1,056,768 values for FLUX.1-dev.
 */
export function modulationLayout(spec: TransformerSpec): { slots: readonly ModulationSlot[]; size: number } {
  const slots: ModulationSlot[] = [];
  let offset = 0;
  const slot = (name: string, chunks: readonly Chunk[], linears = [`${name}.linear`]): void => {
    const size = chunks.length * spec.hiddenSize;
    slots.push({ name, chunks, linears, offset, size });
    offset += size;
  };
  for (let i = 0; i < spec.doubleBlocks; i++) {
    slot(`transformer_blocks.${i}.norm1`, DOUBLE_CHUNKS);
    slot(`transformer_blocks.${i}.norm1_context`, DOUBLE_CHUNKS);
  }
  for (let i = 0; i < spec.singleBlocks; i++) slot(`single_transformer_blocks.${i}.norm`, SINGLE_CHUNKS);
  // The two layouts store the halves of the last one in opposite orders; by name there is no order to get wrong.
  slot('norm_out', FINAL_CHUNKS, ['norm_out.linear_shift', 'norm_out.linear_scale']);
  return { slots, size: offset };
}

/** The modulations of one step inside a graph. */
export interface Modulation {
  /** The chunks [hidden] of the module `name`; scales already have their 1 added. */
  chunks(name: string, chunks: readonly Chunk[]): Value[];
}

/** Modulations from a row with all of them, cut into its chunks. */
export class RowModulation implements Modulation {
  readonly #slots = new Map<string, Value>();
  readonly #graph: GraphBuilder;
  readonly #hidden: number;

  /** @param row modulations of one step, [layout.size] */
  constructor(graph: GraphBuilder, row: Value, spec: TransformerSpec) {
    this.#graph = graph;
    this.#hidden = spec.hiddenSize;
    const { slots } = modulationLayout(spec);
    const parts = split(
      graph,
      row,
      0,
      slots.map((slot) => slot.size),
    );
    slots.forEach((slot, i) => this.#slots.set(slot.name, parts[i]!));
  }

  /** The chunks [hidden] of the module `name`; scales already have their 1 added. */
  chunks(name: string, chunks: readonly Chunk[]): Value[] {
    return this.#cut(this.#graph, name, chunks);
  }

  /** The same modulations for a body of the graph, which cuts its own into chunks. */
  within(body: GraphBuilder): Modulation {
    return { chunks: (name, chunks) => this.#cut(body, name, chunks) };
  }

  #cut(g: GraphBuilder, name: string, chunks: readonly Chunk[]): Value[] {
    const part = this.#slots.get(name);
    if (!part) throw new Error(`no modulation belongs to ${name}`);
    return split(
      g,
      part,
      0,
      chunks.map(() => this.#hidden),
    );
  }
}

/** Name of the input with the modulation of a module: what follows is the module's. */
export const MODULATION = 'modulation:';

/** Modulations that are inputs of the graph, fp32 [chunks * hidden] each; for graphs of a part of the model. */
export class InputModulation implements Modulation {
  readonly #graph: GraphBuilder;
  readonly #hidden: number;
  readonly #compute: ComputeType;

  constructor(graph: GraphBuilder, spec: TransformerSpec, compute: ComputeType) {
    this.#graph = graph;
    this.#hidden = spec.hiddenSize;
    this.#compute = compute;
  }

  chunks(name: string, chunks: readonly Chunk[]): Value[] {
    const g = this.#graph;
    const row = g.input(`${MODULATION}${name}`, 'float32', [chunks.length * this.#hidden]);
    return split(
      g,
      cast(g, row, this.#compute),
      0,
      chunks.map(() => this.#hidden),
    );
  }
}
