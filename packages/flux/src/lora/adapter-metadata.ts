import { isObject, type JsonObject, parseJsonObject } from '../checkpoint/json.ts';
import { compilePattern, MAX_PATTERNS, Patterns } from './module-patterns.ts';
import { loraInvalid, loraUnsupported, shown } from './problems.ts';
import type { Source } from './sources.ts';

/** Where diffusers keeps the LoraConfig of PEFT in a safetensors file. */
export const ADAPTER_METADATA_KEY = 'lora_adapter_metadata';

interface Config {
  readonly rank: number;
  readonly alpha: number;
  /** What modules have instead. */
  readonly ranks: Patterns;
  readonly alphas: Patterns;
  /** Divide by the root of the rank. */
  readonly rankStabilized: boolean;
}

/** The LoraConfigs of a file, one per part of the pipeline. */
export class AdapterMetadata {
  readonly #file: string;
  readonly #fields: JsonObject;
  readonly #configs = new Map<string, Config | undefined>();

  private constructor(file: string, fields: JsonObject) {
    this.#file = file;
    this.#fields = fields;
  }

  /** @throws FluxError `lora_invalid` when it is no JSON object */
  static parse(file: string, metadata: Readonly<Record<string, string>>): AdapterMetadata | undefined {
    const text = metadata[ADAPTER_METADATA_KEY];
    if (text === undefined) return undefined;
    return new AdapterMetadata(
      file,
      parseJsonObject(file, ADAPTER_METADATA_KEY, new TextEncoder().encode(text)),
    );
  }

  /**
   * The factor that the metadata gives the module; undefined when they do not speak about its part.
   *
   * @param rank of the matrices, which the metadata must agree with
   */
  scaleOf({ stem, located }: Source, rank: number): number | undefined {
    if (located.dialect !== 'peft') return undefined;
    const config = this.#configOf(located.prefix);
    if (!config) return undefined;
    const expected = config.ranks.find(located.path) ?? config.rank;
    if (expected !== rank) {
      throw loraInvalid(
        this.#file,
        `${shown(stem)} has rank ${rank}; its ${ADAPTER_METADATA_KEY} says ${expected}`,
        { key: stem, found: rank, expected },
      );
    }
    const alpha = config.alphas.find(located.path) ?? config.alpha;
    return alpha / (config.rankStabilized ? Math.sqrt(rank) : rank);
  }

  #configOf(prefix: string): Config | undefined {
    if (!this.#configs.has(prefix)) this.#configs.set(prefix, this.#parseConfig(prefix));
    return this.#configs.get(prefix);
  }

  #parseConfig(prefix: string): Config | undefined {
    // A LoRA that is saved without its pipeline has neither prefixes in its keys nor here.
    const part = prefix === 'base_model.model.' ? '' : prefix;
    if (
      !Object.keys(this.#fields).some((key) => key.startsWith(part) && key.indexOf('.') === part.length - 1)
    )
      return undefined;
    const field = (name: string): unknown => this.#fields[part + name];
    const type = field('peft_type') ?? 'LORA';
    if (type !== 'LORA') throw this.#unsupported(`${part}peft_type`, type, 'LORA');
    if (this.#flag(`${part}use_dora`)) throw this.#unsupported(`${part}use_dora`, true, 'false');
    return {
      rank: this.#positive(`${part}r`, field('r')),
      alpha: this.#finite(`${part}lora_alpha`, field('lora_alpha')),
      ranks: this.#patterns(`${part}rank_pattern`, field('rank_pattern')),
      alphas: this.#patterns(`${part}alpha_pattern`, field('alpha_pattern')),
      rankStabilized: this.#flag(`${part}use_rslora`),
    };
  }

  #patterns(name: string, value: unknown): Patterns {
    if (value === undefined || value === null) return new Patterns([]);
    if (!isObject(value)) throw this.#wrong(name, value, 'an object of numbers');
    const entries = Object.entries(value);
    if (entries.length > MAX_PATTERNS)
      throw this.#unsupported(name, `of ${entries.length} entries`, `at most ${MAX_PATTERNS}`);
    return new Patterns(
      entries.map(([pattern, number]) => {
        const matches = compilePattern(pattern);
        if (!matches) throw this.#unsupported(name, pattern, 'module paths and simple regular expressions');
        return { matches, value: this.#finite(`${name} of ${shown(pattern)}`, number) };
      }),
    );
  }

  #flag(name: string): boolean {
    const value = this.#fields[name] ?? false;
    if (typeof value !== 'boolean') throw this.#wrong(name, value, 'true or false');
    return value;
  }

  #positive(name: string, value: unknown): number {
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1)
      throw this.#wrong(name, value, 'an integer of at least 1');
    return value;
  }

  #finite(name: string, value: unknown): number {
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.#wrong(name, value, 'a number');
    return value;
  }

  #wrong(name: string, found: unknown, expected: string) {
    return loraInvalid(
      this.#file,
      `${ADAPTER_METADATA_KEY} has ${name} ${shown(found)}; expected ${expected}`,
      {
        key: name,
        found: shown(found),
      },
    );
  }

  #unsupported(name: string, found: unknown, allowed: string) {
    return loraUnsupported(
      this.#file,
      `${ADAPTER_METADATA_KEY} has ${name} ${shown(found)}; supported: ${allowed}`,
      { key: name, found: shown(found) },
    );
  }
}
