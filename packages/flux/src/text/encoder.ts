import type { ClipSpec, T5Spec } from '../checkpoint/spec.ts';
import type { WeightLocator } from '../graph/weights.ts';
import { GraphSession, type SessionOptions } from '../runtime/session.ts';
import { buildClip, pooledIndex } from './clip.ts';
import { buildT5, relativeBuckets } from './t5.ts';
import { TextTokenizer } from './tokenizer.ts';

export interface EncodedText {
  /** T5 hidden states [maxSequenceLength, modelDim]. */
  text: Float32Array;
  /** CLIP's pooled output [1, hiddenSize]. */
  pooled: Float32Array;
}

export interface TextEncoderParts {
  clip: { spec: ClipSpec; locator: WeightLocator; tokenizer: string };
  t5: { spec: T5Spec; locator: WeightLocator; tokenizer: string };
  /** Tokens that T5's result has, padding included. */
  maxSequenceLength: number;
}

/** Both text encoders of FLUX with their tokenizers. */
export class TextEncoder {
  readonly #parts: TextEncoderParts;
  readonly #tokenizers: { clip: TextTokenizer; t5: TextTokenizer };
  readonly #sessions: { clip: GraphSession; t5: GraphSession };

  private constructor(
    parts: TextEncoderParts,
    tokenizers: { clip: TextTokenizer; t5: TextTokenizer },
    sessions: { clip: GraphSession; t5: GraphSession },
  ) {
    this.#parts = parts;
    this.#tokenizers = tokenizers;
    this.#sessions = sessions;
  }

  static async load(parts: TextEncoderParts, options: SessionOptions): Promise<TextEncoder> {
    const tokenizers = {
      clip: await TextTokenizer.open(parts.clip.tokenizer),
      t5: await TextTokenizer.open(parts.t5.tokenizer),
    };
    const sessions = {
      clip: await GraphSession.create('clip', buildClip(parts.clip.spec, parts.clip.locator), options),
      t5: await GraphSession.create('t5', buildT5(parts.t5.spec, parts.t5.locator), options),
    };
    return new TextEncoder(parts, tokenizers, sessions);
  }

  /** The same encoders with other weights for CLIP; T5 is shared with this one, which must outlive the result. */
  async withClip(locator: WeightLocator, options: SessionOptions): Promise<TextEncoder> {
    const clip = await GraphSession.create('clip', buildClip(this.#parts.clip.spec, locator), options);
    return new TextEncoder(this.#parts, this.#tokenizers, { ...this.#sessions, clip });
  }

  async encode(prompt: string): Promise<EncodedText> {
    const { clip, t5, maxSequenceLength } = this.#parts;
    const clipIds = this.#tokenizers.clip.encode(prompt, clip.spec.maxPositions);
    const t5Ids = this.#tokenizers.t5.encode(prompt, maxSequenceLength);
    const padding = Array.from({ length: maxSequenceLength - t5Ids.length }, () => t5.spec.padTokenId);
    return {
      pooled: await this.clipPooled(clipIds),
      text: await this.t5Hidden([...t5Ids, ...padding]),
    };
  }

  /** Pooled output [1, hiddenSize] for token ids; what follows the pooled token is not looked at. */
  async clipPooled(ids: readonly number[]): Promise<Float32Array> {
    const used = ids.slice(0, pooledIndex(ids, this.#parts.clip.spec) + 1);
    const dims = [used.length];
    const feeds = {
      ids: { data: BigInt64Array.from(used, BigInt), dims },
      positions: { data: BigInt64Array.from(used, (_, i) => BigInt(i)), dims },
    };
    return (await this.#sessions.clip.run(feeds, ['pooled'])).pooled.data;
  }

  /** Hidden states [ids.length, modelDim]. */
  async t5Hidden(ids: readonly number[]): Promise<Float32Array> {
    const { relativeBuckets: buckets, relativeMaxDistance } = this.#parts.t5.spec;
    const tokens = ids.length;
    const feeds = {
      ids: { data: BigInt64Array.from(ids, BigInt), dims: [tokens] },
      buckets: { data: relativeBuckets(tokens, buckets, relativeMaxDistance), dims: [tokens, tokens] },
    };
    return (await this.#sessions.t5.run(feeds, ['hidden'])).hidden.data;
  }

  /** Releases CLIP alone: all that an encoder of {@link withClip} owns. */
  async releaseClip(): Promise<void> {
    await this.#sessions.clip.release();
  }

  async release(): Promise<void> {
    await this.releaseClip();
    await this.#sessions.t5.release();
  }
}
