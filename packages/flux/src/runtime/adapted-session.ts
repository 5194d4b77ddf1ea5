import type { GraphModel } from '../graph/builder.ts';
import { deltaFeeds } from '../graph/linears.ts';
import type { Deltas } from '../lora/compose.ts';
import { type Feed, GraphSession, type SessionOptions } from './session.ts';

type Results<Name extends string> = Record<Name, { data: Float32Array; dims: readonly number[] }>;

/** A session together with what is known of its graph: which weights it uses and which modules take a LoRA. */
export class AdaptedSession {
  readonly #session: GraphSession;
  readonly #weights: ReadonlySet<string>;
  readonly #adapted: readonly string[];
  readonly #owned: boolean;

  private constructor(
    session: GraphSession,
    weights: ReadonlySet<string>,
    adapted: readonly string[],
    owned: boolean,
  ) {
    this.#session = session;
    this.#weights = weights;
    this.#adapted = adapted;
    this.#owned = owned;
  }

  static async create(name: string, graph: GraphModel, options: SessionOptions): Promise<AdaptedSession> {
    const adapted = graph.inputs.flatMap((input) =>
      input.name.endsWith('.down') ? [input.name.slice(0, -'.down'.length)] : [],
    );
    return new AdaptedSession(
      await GraphSession.create(name, graph, options),
      graph.externals,
      adapted,
      true,
    );
  }

  /** Whether the graph has a weight of one of the modules. */
  uses(modules: ReadonlySet<string>): boolean {
    return [...modules].some((module) => this.#weights.has(`${module}.weight`));
  }

  /** The same session, which releasing the result leaves open. */
  shared(): AdaptedSession {
    return new AdaptedSession(this.#session, this.#weights, this.#adapted, false);
  }

  /** @param deltas a LoRA for every adapted module */
  run<Name extends string>(
    feeds: Record<string, Feed>,
    fetches: readonly Name[],
    deltas: Deltas,
  ): Promise<Results<Name>> {
    return this.#session.run({ ...feeds, ...deltaFeeds(deltas, this.#adapted) }, fetches);
  }

  async release(): Promise<void> {
    if (this.#owned) await this.#session.release();
  }
}
