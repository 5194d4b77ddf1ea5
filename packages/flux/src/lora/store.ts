import { LRUCache } from 'lru-cache';
import { readLora } from './read.ts';
import type { Lora, LoraTarget, Style } from './types.ts';

/** Bytes of parsed LoRAs kept in memory: about four of rank 16 on every linear of FLUX.1. */
const DEFAULT_MAX_BYTES = 2 ** 30;

/** Parsed LoRAs by the key of their content, least recently used out first. */
export class LoraStore {
  readonly #cache: LRUCache<string, Lora, Style>;

  constructor(target: LoraTarget, maxBytes = DEFAULT_MAX_BYTES) {
    this.#cache = new LRUCache<string, Lora, Style>({
      maxSize: maxBytes,
      sizeCalculation: (lora) => Math.max(lora.byteLength, 1),
      // One read however many ask; a failed one is not remembered.
      fetchMethod: (_key, _stale, { context }) => readLora(context.file, target),
    });
  }

  /** @throws FluxError for a file that is no LoRA of this model */
  async get(style: Style): Promise<Lora> {
    return (await this.#cache.fetch(style.key, { context: style })) ?? readMissing(style);
  }
}

function readMissing(style: Style): never {
  throw new Error(`${style.file} gave no LoRA`);
}
