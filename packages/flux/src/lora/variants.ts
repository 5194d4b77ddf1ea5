import { LRUCache } from 'lru-cache';
import type { WeightLocator } from '../graph/weights.ts';
import type { SessionOptions } from '../runtime/session.ts';
import type { TextEncoder } from '../text/encoder.ts';
import type { Transformer } from '../transformer/transformer.ts';
import { composeDeltas, type Deltas, NO_DELTAS } from './compose.ts';
import { mergeDeltas } from './merge.ts';
import type { LoraStore } from './store.ts';
import type { Lora, Style } from './types.ts';

/** What a set of styles makes of a model. */
export interface Variant {
  text: TextEncoder;
  transformer: Transformer;
  /** To be given to `transformer.condition`. */
  deltas: Deltas;
}

export interface VariantBase {
  text: TextEncoder;
  transformer: Transformer;
  /** fp32 in any case. */
  clipWeights: WeightLocator;
  transformerWeights: WeightLocator;
  /** Whether the transformer's weights are fp32, so that a LoRA can be merged without loss. */
  mergeable: boolean;
  /** A transformer of the same weights that takes LoRAs as inputs for `adapted` modules. */
  loadAdapted(adapted: ReadonlySet<string>): Promise<Transformer>;
  session: SessionOptions;
}

/** Sets of styles kept ready; each has sessions of its own, for a merged set as large as the transformer in fp32. */
const KEPT = 2;

/**
 * The styled forms of one model. With fp32 weights a set of styles is merged into copies of the changed weights: a
 * step then costs what it costs without. With narrower weights it is added to the result of each module.
 * Not for concurrent use: a variant is valid until `get` was called for {@link KEPT} other sets.
 */
export class Variants {
  readonly #base: VariantBase;
  readonly #loras: LoraStore;
  readonly #variants = cacheOf<Variant & { release(): Promise<void> }>((variant) => variant.release());
  readonly #adapted = cacheOf<Transformer>((transformer) => transformer.release());

  constructor(base: VariantBase, loras: LoraStore) {
    this.#base = base;
    this.#loras = loras;
  }

  /** @throws FluxError when a file cannot be read or is no LoRA of this model */
  async get(styles: readonly Style[]): Promise<Variant> {
    // Sorted, because sums of floats depend on their order and the request's order means nothing.
    const active = styles.filter(({ weight }) => weight !== 0).sort((a, b) => (a.key < b.key ? -1 : 1));
    if (active.length === 0) return { ...this.#base, deltas: NO_DELTAS };
    const key = JSON.stringify(active.map((style) => [style.key, style.weight]));
    const known = this.#variants.get(key);
    if (known) return known;
    const variant = await this.#make(active);
    this.#variants.set(key, variant);
    return variant;
  }

  release(): void {
    this.#variants.clear();
    this.#adapted.clear();
  }

  async #make(styles: readonly Style[]): Promise<Variant & { release(): Promise<void> }> {
    const loras: { lora: Lora; weight: number }[] = [];
    for (const style of styles) loras.push({ lora: await this.#loras.get(style), weight: style.weight });
    const composed = (part: 'transformer' | 'clip'): Deltas =>
      composeDeltas(loras.map(({ lora, weight }) => ({ deltas: lora[part], weight })));
    const clip = await this.#clip(composed('clip'));
    const deltas = composed('transformer');
    if (deltas.size === 0) {
      const { transformer } = this.#base;
      return { text: clip.text, transformer, deltas, release: clip.release };
    }
    const changed = new Set(deltas.keys());
    if (!this.#base.mergeable) {
      const transformer = await this.#adaptedFor(changed);
      return { text: clip.text, transformer, deltas, release: clip.release };
    }
    const merged = await mergeDeltas(this.#base.transformerWeights, deltas);
    const transformer = await this.#base.transformer
      .withWeights(merged.locator, changed, this.#base.session)
      .finally(() => merged.dispose());
    return {
      text: clip.text,
      transformer,
      deltas: NO_DELTAS,
      release: async () => {
        await clip.release();
        await transformer.release();
      },
    };
  }

  async #clip(deltas: Deltas): Promise<{ text: TextEncoder; release(): Promise<void> }> {
    const { text, clipWeights, session } = this.#base;
    if (deltas.size === 0) return { text, release: () => Promise.resolve() };
    const merged = await mergeDeltas(clipWeights, deltas);
    const styled = await text.withClip(merged.locator, session).finally(() => merged.dispose());
    return { text: styled, release: () => styled.releaseClip() };
  }

  async #adaptedFor(modules: ReadonlySet<string>): Promise<Transformer> {
    const key = [...modules].sort().join('\n');
    const known = this.#adapted.get(key);
    if (known) return known;
    const transformer = await this.#base.loadAdapted(modules);
    this.#adapted.set(key, transformer);
    return transformer;
  }
}

function cacheOf<Value extends object>(release: (value: Value) => Promise<void>): LRUCache<string, Value> {
  return new LRUCache<string, Value>({ max: KEPT, dispose: (value) => void release(value) });
}
