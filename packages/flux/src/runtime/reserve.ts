import { GraphBuilder } from '../graph/builder.ts';
import { GraphSession, type SessionOptions } from './session.ts';

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

  /** @param bytes a power of two, which is what an arena takes without rounding */
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

  /** A session keeps what a run has needed. */
  async #take(): Promise<GraphSession> {
    const g = new GraphBuilder('reserve');
    const count = this.#bytes / Float32Array.BYTES_PER_ELEMENT;
    const size = g.input('size', 'int64', [1]);
    const values = g.op('ConstantOfShape', [size], { type: 'float32', shape: [count] });
    g.output('size.again', g.op('Shape', [values], { type: 'int64', shape: [1] }));
    const session = await GraphSession.create('reserve', g.build(), this.#options);
    await session.run({ size: { data: BigInt64Array.of(BigInt(count)), dims: [1] } }, ['size.again']);
    return session;
  }
}
