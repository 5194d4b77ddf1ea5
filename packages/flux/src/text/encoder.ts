import type { ClipSpec, T5Spec } from '../checkpoint/spec.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { GraphSession, type SessionOptions } from '../runtime/session.ts';
import { POOLED_CACHE_BYTES, PromptCache, TEXT_CACHE_BYTES } from './cache.ts';
import { buildClip, pooledIndex } from './clip.ts';
import { StreamedT5 } from './streamed-t5.ts';
import { ResidentT5, type T5Encoder } from './t5-encoder.ts';
import { TextTokenizer } from './tokenizer.ts';

/** Kept by the encoder for the next job with the prompt: not to be written to or transferred. */
export interface EncodedText {
  /** T5 hidden states [maxSequenceLength, modelDim]. */
  text: Float32Array;
  /** CLIP's pooled output [1, hiddenSize]. */
  pooled: Float32Array;
}

export interface TextEncoderParts {
  clip: { spec: ClipSpec; locator: WeightLocator; tokenizer: string };
  /**
   * With `streamed` T5 holds no weights: they are read for every text and computed with in this type. `session` is for
   * T5 alone when it runs elsewhere than CLIP.
   */
  t5: {
    spec: T5Spec;
    locator: WeightLocator;
    tokenizer: string;
    streamed?: ComputeType;
    session?: SessionOptions;
  };
  /** Tokens that T5's result has, padding included. */
  maxSequenceLength: number;
}

/** Both text encoders of FLUX with their tokenizers. */
export class TextEncoder {
  readonly #parts: TextEncoderParts;
  readonly #tokenizers: { clip: TextTokenizer; t5: TextTokenizer };
  readonly #sessions: { clip: GraphSession; t5: T5Encoder };
  readonly #pooled = new PromptCache(POOLED_CACHE_BYTES);
  /** Shared by the encoders of {@link withClip}: T5 is the same in all of them. */
  readonly #texts: PromptCache;

  private constructor(
    parts: TextEncoderParts,
    tokenizers: { clip: TextTokenizer; t5: TextTokenizer },
    sessions: { clip: GraphSession; t5: T5Encoder },
    texts = new PromptCache(TEXT_CACHE_BYTES),
  ) {
    this.#parts = parts;
    this.#tokenizers = tokenizers;
    this.#sessions = sessions;
    this.#texts = texts;
  }

  static async load(parts: TextEncoderParts, options: SessionOptions): Promise<TextEncoder> {
    const tokenizers = {
      clip: await TextTokenizer.open(parts.clip.tokenizer),
      t5: await TextTokenizer.open(parts.t5.tokenizer),
    };
    const { spec, locator, streamed, session = options } = parts.t5;
    const sessions = {
      clip: await GraphSession.create('clip', buildClip(parts.clip.spec, parts.clip.locator), options),
      t5: streamed
        ? new StreamedT5(spec, locator, streamed, session)
        : await ResidentT5.load(spec, locator, session),
    };
    return new TextEncoder(parts, tokenizers, sessions);
  }

  /** The same encoders with other weights for CLIP; T5 is shared with this one, which must outlive the result. */
  async withClip(locator: WeightLocator, options: SessionOptions): Promise<TextEncoder> {
    const clip = await GraphSession.create('clip', buildClip(this.#parts.clip.spec, locator), options);
    return new TextEncoder(this.#parts, this.#tokenizers, { ...this.#sessions, clip }, this.#texts);
  }

  async encode(prompt: string): Promise<EncodedText> {
    const { clip, t5, maxSequenceLength } = this.#parts;
    const pooled = await this.#pooled.get(prompt, () =>
      this.clipPooled(this.#tokenizers.clip.encode(prompt, clip.spec.maxPositions)),
    );
    const text = await this.#texts.get(prompt, () => {
      const ids = this.#tokenizers.t5.encode(prompt, maxSequenceLength);
      const padding = Array.from({ length: maxSequenceLength - ids.length }, () => t5.spec.padTokenId);
      return this.t5Hidden([...ids, ...padding]);
    });
    return { text, pooled };
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
  t5Hidden(ids: readonly number[]): Promise<Float32Array> {
    return this.#sessions.t5.hidden(ids);
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
