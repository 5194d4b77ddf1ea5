import { LRUCache } from 'lru-cache';
import type { WeightLocator } from '../graph/weights.ts';
import type { SessionOptions } from '../runtime/session.ts';
import type { TextEncoder } from '../text/encoder.ts';
import { type Adaptation, NO_ADAPTATION } from '../transformer/parts.ts';
import type { Transformer } from '../transformer/transformer.ts';
import { composeDeltas, type Deltas } from './compose.ts';
import { withMergedWeights } from './merge.ts';
import type { LoraStore } from './store.ts';
import type { Lora, Style } from './types.ts';

/** What a set of styles makes of a model. */
export interface Variant {
  text: TextEncoder;
  transformer: Transformer;
  /** To be given to `transformer.condition`. */
  adaptation: Adaptation;
}

export interface VariantBase {
  text: TextEncoder;
  transformer: Transformer;
  /** fp32 in any case. */
  clipWeights: WeightLocator;
  transformerWeights: WeightLocator;
  /**
   * How the transformer takes LoRAs: 'merge' into its fp32 weights, without loss; 'add' as inputs of sessions made for
   * their modules; 'inputs' for any modules of the one that is there, but for those that `conditions` names.
   */
  adapts: 'merge' | 'add' | 'inputs';
  /** Whether a module belongs to the conditioner. */
  conditions: (module: string) => boolean;
  /** A transformer of the same weights that takes LoRAs as inputs for `adapted` modules. */
  loadAdapted(adapted: ReadonlySet<string>): Promise<Transformer>;
  session: SessionOptions;
}

/** Sets of styles kept ready; each has sessions of its own, for a merged set as large as the transformer in fp32. */
const KEPT = 2;

/** A variant and what it holds alone. */
interface KeptVariant extends Variant {
  release: () => Promise<void>;
}

/**
 * The styled forms of one model. With fp32 weights a set of styles is merged into copies of the changed weights: a
 * step then costs what it costs without. With narrower weights it is added to the result of each module.
 * Not for concurrent use: a variant is valid until `get` was called for {@link KEPT} other sets.
 */
export class Variants {
  readonly #base: VariantBase;
  readonly #loras: LoraStore;
  readonly #variants = cacheOf<KeptVariant>((variant) => variant.release());
  /** By the modules that they take LoRAs for; shared by the variants of such a set. */
  readonly #adapted = cacheOf<Transformer>((transformer) => transformer.release());

  constructor(base: VariantBase, loras: LoraStore) {
    this.#base = base;
    this.#loras = loras;
  }

  /** @throws FluxError when a file cannot be read or is no LoRA of this model */
  async get(styles: readonly Style[]): Promise<Variant> {
    // Sorted, because sums of floats depend on their order and the request's order means nothing.
    const active = styles.filter(({ weight }) => weight !== 0).sort((a, b) => (a.key < b.key ? -1 : 1));
    if (active.length === 0) return { ...this.#base, adaptation: NO_ADAPTATION };
    const key = JSON.stringify(active.map((style) => [style.key, style.weight]));
    const known = this.#variants.get(key);
    if (known && this.#isAlive(known)) return known;
    const variant = await this.#make(active);
    this.#variants.set(key, variant);
    return variant;
  }

  release(): void {
    this.#variants.clear();
    this.#adapted.clear();
  }

  /** Whether the transformer that a variant shares with others is still kept; asking keeps it longer. */
  #isAlive({ transformer, adaptation: { deltas } }: Variant): boolean {
    if (this.#base.adapts !== 'add' || deltas.size === 0) return true;
    return this.#adapted.get(modulesKey(deltas)) === transformer;
  }

  async #make(styles: readonly Style[]): Promise<KeptVariant> {
    const loras: { lora: Lora; weight: number }[] = [];
    for (const style of styles) loras.push({ lora: await this.#loras.get(style), weight: style.weight });
    const composed = (part: 'transformer' | 'clip'): Deltas =>
      composeDeltas(loras.map(({ lora, weight }) => ({ deltas: lora[part], weight })));
    const clip = await this.#clip(composed('clip'));
    const { transformer, transformerWeights, adapts, conditions } = this.#base;
    if (adapts === 'inputs') {
      const parts = loras.map(({ lora, weight }) => ({ deltas: lora.transformer, weight }));
      const few = parts.map(({ deltas: all, weight }) => ({
        deltas: new Map([...all].filter(([module]) => conditions(module))),
        weight,
      }));
      return { ...clip, transformer, adaptation: { parts, deltas: composeDeltas(few) } };
    }
    const deltas = composed('transformer');
    const adaptation = { deltas, parts: [] };
    if (deltas.size === 0) return { ...clip, transformer, adaptation };
    if (adapts === 'add') return { ...clip, transformer: await this.#adaptedFor(deltas), adaptation };
    const changed = new Set(deltas.keys());
    const merged = await withMergedWeights(transformerWeights, deltas, (locator) =>
      transformer.withWeights(locator, changed),
    );
    return {
      text: clip.text,
      transformer: merged,
      adaptation: NO_ADAPTATION,
      release: async () => {
        await clip.release();
        await merged.release();
      },
    };
  }

  async #clip(deltas: Deltas): Promise<Pick<KeptVariant, 'text' | 'release'>> {
    const { text, clipWeights, session } = this.#base;
    if (deltas.size === 0) return { text, release: () => Promise.resolve() };
    const styled = await withMergedWeights(clipWeights, deltas, (locator) => text.withClip(locator, session));
    return { text: styled, release: () => styled.releaseClip() };
  }

  async #adaptedFor(deltas: Deltas): Promise<Transformer> {
    const key = modulesKey(deltas);
    const known = this.#adapted.get(key);
    if (known) return known;
    const transformer = await this.#base.loadAdapted(new Set(deltas.keys()));
    this.#adapted.set(key, transformer);
    return transformer;
  }
}

function modulesKey(deltas: Deltas): string {
  return [...deltas.keys()].sort().join('\n');
}

function cacheOf<Value extends object>(release: (value: Value) => Promise<void>): LRUCache<string, Value> {
  // Releasing a session cannot fail in a way that anybody could act on, and the cache does not wait.
  const dispose = (value: Value): void => void release(value);
  return new LRUCache<string, Value>({ max: KEPT, dispose });
}
