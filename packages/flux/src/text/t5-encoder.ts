import type { T5Spec } from '../checkpoint/spec.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { GraphSession, type SessionOptions } from '../runtime/session.ts';
import { bucketFeed, buildT5 } from './t5.ts';

/** A T5 encoder, wherever its weights are. */
export interface T5Encoder {
  /** Hidden states [ids.length, modelDim], fp32. */
  hidden(ids: readonly number[]): Promise<Float32Array>;
  release(): Promise<void>;
}

/** T5 as one graph that holds its weights. */
export class ResidentT5 implements T5Encoder {
  readonly #session: GraphSession;
  readonly #spec: T5Spec;

  private constructor(session: GraphSession, spec: T5Spec) {
    this.#session = session;
    this.#spec = spec;
  }

  static async load(spec: T5Spec, locator: WeightLocator, options: SessionOptions): Promise<ResidentT5> {
    return new ResidentT5(await GraphSession.create('t5', buildT5(spec, locator), options), spec);
  }

  async hidden(ids: readonly number[]): Promise<Float32Array> {
    const feeds = {
      ids: { data: BigInt64Array.from(ids, BigInt), dims: [ids.length] },
      buckets: bucketFeed(ids.length, this.#spec),
    };
    return (await this.#session.run(feeds, ['hidden'])).hidden.data;
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
