import { GraphBuilder } from '../graph/builder.ts';
import { type Feed, GraphSession, type SessionOptions } from './session.ts';

/**
 * Memory of a device that is kept from sessions that stay. Each session has an arena that doubles what it takes and
 * never gives back, as far as there is any: the token path of FLUX.1 needs 0.5 GB for its values and would take all
 * that a small card has. While it runs for the first times the reserve is held; what is opened for a moment frees it.
 * A session that is given a reserve frees it when it is made.
 */
export class Reserve {
  readonly #bytes: number;
  readonly #options: SessionOptions;
  #session: Promise<GraphSession> | null = null;

  /** @param bytes a whole number of MiB; taken in powers of two, which an arena does not round up */
  constructor(bytes: number, options: SessionOptions) {
    this.#bytes = bytes;
    this.#options = options;
  }

  /** @throws FluxError out_of_memory */
  async hold(): Promise<void> {
    await (this.#session ??= this.#take().catch((error: unknown) => {
      this.#session = null;
      throw error;
    }));
  }

  async free(): Promise<void> {
    const held = this.#session;
    this.#session = null;
    await (await held)?.release();
  }

  /** A session keeps what a run has needed, also after its values are gone. */
  async #take(): Promise<GraphSession> {
    const g = new GraphBuilder('reserve');
    const feeds: Record<string, Feed> = {};
    // The last result is computed first: so the smallest is taken first, and none finds room in what is there already.
    for (const bytes of powersOfTwo(this.#bytes)) {
      const count = bytes / Float32Array.BYTES_PER_ELEMENT;
      const size = g.input(`size.${bytes}`, 'int64', [1]);
      feeds[size.name] = { data: BigInt64Array.of(BigInt(count)), dims: [1] };
      const values = g.op('ConstantOfShape', [size], { type: 'float32', shape: [count] });
      g.output(`taken.${bytes}`, g.op('Shape', [values], { type: 'int64', shape: [1] }));
    }
    const graph = g.build();
    const session = await GraphSession.create('reserve', graph, this.#options);
    await session.run(
      feeds,
      graph.outputs.map(({ name }) => name),
    );
    return session;
  }
}

/** The powers of two that a number of bytes is the sum of, the largest first. */
function powersOfTwo(bytes: number): number[] {
  const powers: number[] = [];
  for (let rest = bytes; rest >= 1; rest -= powers.at(-1)!) powers.push(2 ** Math.floor(Math.log2(rest)));
  return powers;
}
