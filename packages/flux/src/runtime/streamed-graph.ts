import type { GraphModel } from '../graph/builder.ts';
import { streamedKind, WEIGHT } from '../graph/streamed-weights.ts';
import type { WeightLocator } from '../graph/weights.ts';
import type { Deltas } from '../lora/compose.ts';
import { AdaptedSession } from './adapted-session.ts';
import type { Feed, SessionOptions } from './session.ts';
import type { WeightUnit } from './weight-stream.ts';

/** Builds the graph for weights under the names that the graph has for them; `adapted` modules take a LoRA. */
export type BuildStreamed = (locator: WeightLocator, adapted: ReadonlySet<string>) => GraphModel;

/** A unit that a graph can be run for. */
export interface StreamedUnit {
  /** What a {@link WeightStream} reads for it. */
  readonly weights: WeightUnit;
  /** The name in the checkpoint for a name of the graph, of a weight or a module. */
  readonly rename: (name: string) => string;
}

/**
 * One graph for all units of a kind, such as the layers of an encoder: their weights are inputs under the names of
 * the first unit. A session is made for each combination of number formats that a checkpoint has in its units, and of
 * modules with a LoRA; mostly that is one.
 */
export class StreamedGraph {
  readonly #name: string;
  readonly #locator: WeightLocator;
  readonly #build: BuildStreamed;
  readonly #options: SessionOptions;
  readonly #names: readonly string[];
  readonly #sessions = new Map<string, Promise<AdaptedSession>>();

  constructor(name: string, locator: WeightLocator, build: BuildStreamed, options: SessionOptions) {
    this.#name = name;
    this.#locator = locator;
    this.#build = build;
    this.#options = options;
    this.#names = build(locator, new Set()).inputs.flatMap((input) =>
      input.name.startsWith(WEIGHT) ? [input.name.slice(WEIGHT.length)] : [],
    );
  }

  /** The unit whose weights are called `rename(name)` where the first unit's are called `name`. */
  unit(rename: (name: string) => string = (name) => name): StreamedUnit {
    const weights = this.#names.map((name) => ({ name, located: this.#locator.locate(rename(name)) }));
    return { weights, rename };
  }

  /**
   * Runs the graph for a unit.
   * @param feeds of the graph's inputs, the unit's weights among them
   * @param deltas LoRAs by the names of the checkpoint; those of other units are ignored
   */
  async run<Name extends string>(
    unit: StreamedUnit,
    feeds: Record<string, Feed>,
    fetches: readonly Name[],
    deltas: Deltas,
  ): Promise<Record<Name, { data: Float32Array; dims: readonly number[] }>> {
    const own: Deltas = new Map(
      this.#names.flatMap((name) => {
        const module = name.replace(/\.weight$/, '');
        const delta = deltas.get(unit.rename(module));
        return delta && module !== name ? [[module, { ...delta, module }]] : [];
      }),
    );
    const session = await this.#session(unit, new Set(own.keys()));
    return session.run(feeds, fetches, own);
  }

  async release(): Promise<void> {
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    for (const session of sessions) await (await session).release();
  }

  #session({ weights, rename }: StreamedUnit, adapted: ReadonlySet<string>): Promise<AdaptedSession> {
    const key = JSON.stringify([weights.map(({ located }) => streamedKind(located)), [...adapted]]);
    const known = this.#sessions.get(key);
    if (known) return known;
    const locator: WeightLocator = {
      has: (name) => this.#locator.has(rename(name)),
      locate: (name) => this.#locator.locate(rename(name)),
    };
    const session = AdaptedSession.create(this.#name, this.#build(locator, adapted), this.#options);
    this.#sessions.set(key, session);
    session.catch(() => this.#sessions.delete(key));
    return session;
  }
}
