import { deltaFeeds } from '../graph/linears.ts';
import type { ElementType, Value } from '../graph/builder.ts';
import { streamedKind } from '../graph/streamed-weights.ts';
import {
  buildUnits,
  TAKEN,
  type UnitKind,
  type UnitVariant,
  unitWeights,
  variantPrefix,
} from '../graph/streamed-units.ts';
import type { WeightLocator } from '../graph/weights.ts';
import type { Deltas } from '../lora/compose.ts';
import { type Feed, flag, GraphSession, type Result, type SessionOptions } from './session.ts';
import type { WeightUnit } from './weight-stream.ts';

const ARRAYS: Partial<Record<ElementType, new (length: number) => Feed['data']>> = {
  float32: Float32Array,
  float16: Float16Array,
  int64: BigInt64Array,
  uint16: Uint16Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

/** A unit of a chain, such as a layer of an encoder. */
export interface StreamedUnit {
  readonly kind: string;
  /** What a {@link WeightStream} reads for it. */
  readonly weights: WeightUnit;
  /** The name in the checkpoint for a name that the kind has, of a weight or a module. */
  readonly rename: (name: string) => string;
}

/**
 * A model as a chain of units, of which one at a time is on the device: weights are inputs under the names of the
 * first unit of their kind. Nothing is held there between the sessions of {@link open}.
 */
export class StreamedGraph<Kind extends string> {
  readonly #name: string;
  readonly #locator: WeightLocator;
  readonly #kinds: Readonly<Record<Kind, UnitKind>>;
  readonly #options: SessionOptions;
  readonly #weights = new Map<Kind, readonly string[]>();

  constructor(
    name: string,
    locator: WeightLocator,
    kinds: Readonly<Record<Kind, UnitKind>>,
    options: SessionOptions,
  ) {
    this.#name = name;
    this.#locator = locator;
    this.#kinds = kinds;
    this.#options = options;
  }

  /** The unit whose weights are called `rename(name)` where the first of its kind calls them `name`. */
  unit(kind: Kind, rename: (name: string) => string = (name) => name): StreamedUnit {
    let names = this.#weights.get(kind);
    if (!names) this.#weights.set(kind, (names = unitWeights(this.#kinds[kind], this.#locator)));
    const weights = names.map((name) => ({ name, located: this.#locator.locate(rename(name)) }));
    return { kind, weights, rename };
  }

  /**
   * A session that the units can be run in. Its graph has a branch for each combination of a kind, the number formats
   * of its weights and the modules with a LoRA that is found in the units; mostly that is one for each kind.
   * @param deltas LoRAs by the names of the checkpoint
   */
  async open(units: readonly StreamedUnit[], deltas: Deltas): Promise<StreamedSession> {
    const variants: UnitVariant[] = [];
    const known = new Map<string, number>();
    const runs = new Map<StreamedUnit, UnitRun>();
    for (const unit of units) {
      const own = unitDeltas(unit, deltas);
      const adapted = new Set(own.keys());
      const key = JSON.stringify([
        unit.kind,
        unit.weights.map(({ located }) => streamedKind(located)),
        [...adapted],
      ]);
      let index = known.get(key);
      if (index === undefined) {
        known.set(key, (index = variants.length));
        variants.push({ kind: this.#kinds[unit.kind as Kind], locator: this.#renamed(unit), adapted });
      }
      runs.set(unit, { prefix: variantPrefix(index), deltas: own });
    }
    return StreamedSession.create(this.#name, variants, runs, this.#options);
  }

  #renamed({ rename }: StreamedUnit): WeightLocator {
    return {
      has: (name) => this.#locator.has(rename(name)),
      locate: (name) => this.#locator.locate(rename(name)),
    };
  }
}

/** How a unit is run: the names of its variant in the graph, and its LoRAs by the names of its kind. */
interface UnitRun {
  readonly prefix: string;
  readonly deltas: Deltas;
}

/** The units of a {@link StreamedGraph} ready to run. */
export class StreamedSession {
  readonly #session: GraphSession;
  readonly #runs: ReadonlyMap<StreamedUnit, UnitRun>;
  /** For all inputs: nothing. */
  readonly #nothing: Readonly<Record<string, Feed>>;

  private constructor(
    session: GraphSession,
    runs: ReadonlyMap<StreamedUnit, UnitRun>,
    nothing: Readonly<Record<string, Feed>>,
  ) {
    this.#session = session;
    this.#runs = runs;
    this.#nothing = nothing;
  }

  static async create(
    name: string,
    variants: readonly UnitVariant[],
    runs: ReadonlyMap<StreamedUnit, UnitRun>,
    options: SessionOptions,
  ): Promise<StreamedSession> {
    const graph = buildUnits(name, variants);
    const nothing = Object.fromEntries(graph.inputs.map((input) => [input.name, emptyFeed(input)]));
    return new StreamedSession(await GraphSession.create(name, graph, options), runs, nothing);
  }

  /** @param feeds of the unit's inputs, its weights among them */
  async run<Name extends string, Values extends Float32Array | Float16Array = Float32Array>(
    unit: StreamedUnit,
    feeds: Record<string, Feed>,
    fetches: readonly Name[],
  ): Promise<Record<Name, Result<Values>>> {
    const { prefix, deltas } = this.#runs.get(unit)!;
    const taken = flag(true);
    const own = { ...feeds, ...deltaFeeds(deltas, deltas.keys()), [TAKEN]: taken };
    const all = { ...this.#nothing };
    for (const [name, feed] of Object.entries(own)) all[`${prefix}${name}`] = feed;
    const names = fetches.map((name) => `${prefix}${name}`);
    const results = await this.#session.run<string, Values>(all, names);
    return Object.fromEntries(fetches.map((name) => [name, results[`${prefix}${name}`]!])) as Record<
      Name,
      Result<Values>
    >;
  }

  async release(): Promise<void> {
    await this.#session.release();
  }
}

/** The LoRAs of a unit by the names of its kind. */
function unitDeltas({ weights, rename }: StreamedUnit, deltas: Deltas): Deltas {
  return new Map(
    weights.flatMap(({ name }) => {
      const module = name.replace(/\.weight$/, '');
      const delta = deltas.get(rename(module));
      return delta && module !== name ? [[module, { ...delta, module }]] : [];
    }),
  );
}

/** No rows of an input; 0 where it has no axes. */
function emptyFeed({ type, shape }: Value): Feed {
  const dims = shape.map((dim) => (typeof dim === 'string' ? 0 : dim));
  const data = emptyArray(type, dims.length === 0 ? 1 : 0);
  return type === 'bool' ? { type, data, dims } : { data, dims };
}

function emptyArray(type: ElementType, length: number): Feed['data'] {
  const make = ARRAYS[type];
  if (!make) throw new Error(`no input of a streamed unit is ${type}`);
  return new make(length);
}
