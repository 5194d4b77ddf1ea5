import type { TransformerSpec } from '../checkpoint/spec.ts';
import { add } from '../graph/ops.ts';
import type { UnitKind } from '../graph/streamed-units.ts';
import type { LocatedTensor, WeightLocator } from '../graph/weights.ts';
import type { Deltas } from '../lora/compose.ts';
import type { LoraDelta } from '../lora/types.ts';
import { StreamedGraph, type StreamedSession } from '../runtime/streamed-graph.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { WeightStream } from '../runtime/weight-stream.ts';
import { embed } from './conditioner.ts';
import { type Chunk, modulationLayout } from './modulation.ts';
import type { Conditioner, ConditionerFeeds } from './parts.ts';

/**
 * The conditioner with nothing of it in the device's memory between jobs, and during one a matrix [hidden, hidden] at
 * a time: 27 % of FLUX.1's parameters pass through once. Modulations are computed chunk by chunk, a chunk being what
 * shifts, scales or gates one stream; all of them are one small graph in turn. Computes in fp32: the rows are few.
 */
export class StreamedConditioner implements Conditioner {
  readonly #spec: TransformerSpec;
  readonly #locator: WeightLocator;
  readonly #options: SessionOptions;
  readonly #pieces: readonly Piece[];

  constructor(spec: TransformerSpec, locator: WeightLocator, options: SessionOptions) {
    this.#spec = spec;
    this.#locator = locator;
    this.#options = options;
    this.#pieces = pieces(spec);
  }

  async condition(
    feeds: ConditionerFeeds,
    deltas: Deltas,
  ): Promise<{ modulation: Float32Array; context: Float32Array }> {
    const spec = this.#spec;
    const [steps = 0] = feeds.time.dims;
    const { size } = modulationLayout(spec);
    const [first] = this.#pieces as [Piece];
    const graph = new StreamedGraph(
      'conditioner',
      withPieces(this.#locator, this.#pieces, spec.hiddenSize),
      conditionerKinds(spec, first.name),
      this.#options,
    );
    const head = graph.unit('embedder');
    const units = this.#pieces.map(({ name }) =>
      graph.unit('modulation', (of) => of.replace(first.name, name)),
    );
    const stream = new WeightStream([head, ...units].map(({ weights }) => weights));
    const pass = stream.pass();
    let session: StreamedSession | null = null;
    try {
      const weights = (await pass.next()).value;
      const changes = new Map([...deltas, ...pieceDeltas(deltas, this.#pieces, spec.hiddenSize)]);
      session = await graph.open([head, ...units], changes);
      const fetches = ['activated', 'context'] as const;
      const embedded = await session.run(head, { ...feeds, ...weights }, fetches);
      const modulation = new Float32Array(steps * size);
      const x = embedded.activated;
      for (const [i, { chunk, offset }] of this.#pieces.entries()) {
        const one = { data: Float32Array.of(chunk === 'scale' ? 1 : 0), dims: [] };
        const { y } = await session.run(units[i]!, { x, one, ...(await pass.next()).value }, ['y']);
        for (let step = 0; step < steps; step++) {
          const at = step * spec.hiddenSize;
          modulation.set(y.data.subarray(at, at + spec.hiddenSize), step * size + offset);
        }
      }
      return { modulation, context: embedded.context.data };
    } finally {
      await pass.return();
      await stream.close();
      await session?.release();
    }
  }

  async withWeights(locator: WeightLocator): Promise<StreamedConditioner> {
    return new StreamedConditioner(this.#spec, locator, this.#options);
  }

  async release(): Promise<void> {}
}

/**
 *   embedder    time [N, timestepDim], guidance, pooled, text [T, jointDim] -> activated [N, hidden], context [T, hidden]
 *   modulation  x [N, hidden], one [] -> y [N, hidden] = x Wᵀ + b + one
 *
 * @param module what a modulation's weights belong to
 */
function conditionerKinds(
  spec: TransformerSpec,
  module: string,
): Record<'embedder' | 'modulation', UnitKind> {
  return {
    embedder: { compute: 'float32', build: (g, linears) => embed(g, linears, spec) },
    modulation: {
      compute: 'float32',
      build(g, linears) {
        const x = g.input('x', 'float32', ['N', spec.hiddenSize]);
        const one = g.input('one', 'float32', []);
        return { y: add(g, linears.apply(x, module), one) };
      },
    },
  };
}

/** `hidden` rows of a modulation's linear module. */
interface Piece {
  /** Its path as a module of its own. */
  readonly name: string;
  readonly module: string;
  /** Which rows of the module: the first is `index * hidden`. */
  readonly index: number;
  readonly chunk: Chunk;
  /** Where it goes in a row of modulations. */
  readonly offset: number;
}

function pieces(spec: TransformerSpec): Piece[] {
  return modulationLayout(spec).slots.flatMap(({ linears, chunks, offset }) => {
    const perLinear = chunks.length / linears.length;
    return chunks.map((chunk, i) => {
      const module = linears[Math.floor(i / perLinear)]!;
      const index = i % perLinear;
      return { name: `${module}[${index}]`, module, index, chunk, offset: offset + i * spec.hiddenSize };
    });
  });
}

/** Also knows the weights and biases of the pieces: rows of the modules', wherever those lie. */
function withPieces(locator: WeightLocator, all: readonly Piece[], hidden: number): WeightLocator {
  const known = new Map(all.map((piece) => [piece.name, piece]));
  const parse = (name: string): { piece: Piece; whole: string } | null => {
    const cut = name.lastIndexOf('.');
    const piece = known.get(name.slice(0, cut));
    return piece ? { piece, whole: piece.module + name.slice(cut) } : null;
  };
  return {
    has: (name) => locator.has(parse(name)?.whole ?? name),
    locate(name): LocatedTensor {
      const found = parse(name);
      if (!found) return locator.locate(name);
      const { file, offset, byteLength, dtype, shape, scale } = locator.locate(found.whole);
      const [rows = 0, ...rest] = shape;
      const bytes = (byteLength / rows) * hidden;
      return {
        file,
        offset: offset + found.piece.index * bytes,
        byteLength: bytes,
        dtype,
        shape: [hidden, ...rest],
        ...(scale === undefined ? {} : { scale }),
      };
    },
  };
}

/** The LoRAs of the modulations' modules as those of the pieces: `down` is theirs together, `up` cut by rows. */
function pieceDeltas(deltas: Deltas, all: readonly Piece[], hidden: number): [string, LoraDelta][] {
  return all.flatMap(({ name, module, index }): [string, LoraDelta][] => {
    const delta = deltas.get(module);
    if (!delta) return [];
    const values = hidden * delta.rank;
    const up = delta.up.subarray(index * values, (index + 1) * values);
    return [[name, { ...delta, module: name, outFeatures: hidden, up }]];
  });
}
