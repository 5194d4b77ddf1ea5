import { LRUCache } from 'lru-cache';

/** Some 32 prompts of FLUX.1-dev, whose T5 result is 512 x 4096 in fp32. */
export const TEXT_CACHE_BYTES = 256 * 2 ** 20;

/** Some hundreds of prompts: CLIP's result is 768 values. */
export const POOLED_CACHE_BYTES = 2 ** 20;

/**
 * Results of an encoder by prompt; the least recently used go when `maxBytes` are passed. An array is given to everyone
 * who asks for its prompt: it must not be written to or transferred.
 */
export class PromptCache {
  readonly #results: LRUCache<string, Float32Array>;

  constructor(maxBytes: number) {
    // A character of the key is two bytes; a result that does not fit on its own is not kept.
    const sizeCalculation = ({ byteLength }: Float32Array, prompt: string): number =>
      byteLength + 2 * prompt.length;
    this.#results = new LRUCache({ maxSize: maxBytes, sizeCalculation });
  }

  /** The result for a prompt, made by `encode` when it is not kept; a failure is thrown and not remembered. */
  async get(prompt: string, encode: () => Promise<Float32Array>): Promise<Float32Array> {
    const known = this.#results.get(prompt);
    if (known) return known;
    const made = await encode();
    this.#results.set(prompt, made);
    return made;
  }
}
