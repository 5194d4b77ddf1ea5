import { readFile } from 'node:fs/promises';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { statPath } from './files.ts';
import { parseJsonObject, type JsonObject } from './json.ts';
import { invalid, missing, shown, unsupported } from './problems.ts';

/** The keys with which configs say what they describe: diffusers' and transformers'. */
const KIND_KEYS = Object.freeze(['_class_name', 'model_type']);

/** A config of a model part, read key by key; null counts as absent, as it does in diffusers. */
export class Config {
  /** Absolute path; where it was looked for when there is none. */
  readonly file: string;
  readonly exists: boolean;
  readonly #values: JsonObject;

  constructor(file: string, values: JsonObject | undefined) {
    this.file = file;
    this.exists = values !== undefined;
    this.#values = values ?? {};
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#values, key) && this.#values[key] !== null;
  }

  /** A finite number. */
  number(key: string, fallback?: number): number {
    return this.#read(
      key,
      'a number',
      (value) => typeof value === 'number' && Number.isFinite(value),
      fallback,
    );
  }

  /** An integer of at least `least`. */
  integer(key: string, fallback?: number, least = 0): number {
    const expected = `an integer of at least ${least}`;
    return this.#read(
      key,
      expected,
      (value) => Number.isSafeInteger(value) && (value as number) >= least,
      fallback,
    );
  }

  boolean(key: string, fallback?: boolean): boolean {
    return this.#read(key, 'true or false', (value) => typeof value === 'boolean', fallback);
  }

  string(key: string, fallback?: string): string {
    return this.#read(key, 'a string', (value) => typeof value === 'string', fallback);
  }

  /** Positive integers. */
  integers(key: string, fallback?: readonly number[]): readonly number[] {
    return this.#read(key, 'an array of positive integers', isPositiveIntegers, fallback);
  }

  /** One of a few strings; any other is well formed, but not supported. */
  choice<T extends string>(key: string, allowed: readonly T[], fallback?: T): T {
    const value = this.string(key, fallback);
    if ((allowed as readonly string[]).includes(value)) return value as T;
    throw unsupported(this.file, `${key} is ${shown(value)}; supported: ${allowed.join(', ')}`, {
      key,
      found: value,
      allowed,
    });
  }

  /** Refuses a config that says otherwise than the weights about any of `facts`; keys it does not have pass. */
  checkAgainst(facts: Readonly<Record<string, number | boolean | readonly number[]>>): void {
    for (const [key, fact] of Object.entries(facts)) {
      if (!this.has(key)) continue;
      const found = this.#values[key];
      if (JSON.stringify(found) !== JSON.stringify(fact)) {
        throw invalid(this.file, `${key} is ${shown(found)}; the weights say ${shown(fact)}`, {
          key,
          found: shown(found),
          expected: fact,
        });
      }
    }
  }

  #read<T>(key: string, expected: string, accepts: (value: unknown) => boolean, fallback: T | undefined): T {
    if (this.has(key)) {
      const value = this.#values[key];
      if (accepts(value)) return value as T;
      throw invalid(this.file, `${key} is ${shown(value)}; expected ${expected}`, {
        key,
        found: shown(value),
        expected,
      });
    }
    if (fallback !== undefined) return fallback;
    if (!this.exists) throw missing(this.file, `is needed for ${key}, and absent`, { key });
    throw invalid(this.file, `has no ${key}; expected ${expected}`, { key, expected });
  }
}

function isPositiveIntegers(value: unknown): boolean {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item > 0);
}

/** How the config of a part may be called beside a single file, and what it must describe. */
export interface ConfigKind {
  /** File name beside a single-file checkpoint, `ae_config.json` for example. */
  readonly name: string;
  /** Values of `_class_name` or `model_type`. */
  readonly describes: readonly string[];
}

/**
 * Reads the config of a checkpoint: config.json of a folder; beside a file, `<its name>_config.json`, the name that
 * is usual for the part, or config.json. A config.json beside a file counts only when it describes this part, since
 * the folder may hold others.
 */
export async function readConfig(checkpoint: string, kind: ConfigKind): Promise<Config> {
  const location = resolve(checkpoint);
  if ((await statPath(location)).isDirectory()) return readConfigFile(join(location, 'config.json'), kind);
  const folder = dirname(location);
  const own = `${basename(location, extname(location))}_config.json`;
  for (const name of new Set([own, kind.name])) {
    const config = await readConfigFile(join(folder, name), kind);
    if (config.exists) return config;
  }
  const absent = new Config(join(folder, kind.name), undefined);
  const shared = await readValues(join(folder, 'config.json'));
  return shared && describes(shared, kind) ? new Config(join(folder, 'config.json'), shared) : absent;
}

/** Reads a config that, if it says what it describes, must describe the right thing. */
export async function readConfigFile(file: string, kind: Pick<ConfigKind, 'describes'>): Promise<Config> {
  const values = await readValues(file);
  if (values && KIND_KEYS.some((key) => Object.hasOwn(values, key)) && !describes(values, kind)) {
    const found = KIND_KEYS.map((key) => values[key]).find((value) => value !== undefined);
    throw unsupported(file, `describes ${shown(found)}; supported: ${kind.describes.join(', ')}`, {
      found: shown(found),
      allowed: kind.describes,
    });
  }
  return new Config(file, values);
}

function describes(values: JsonObject, kind: Pick<ConfigKind, 'describes'>): boolean {
  return KIND_KEYS.some((key) => kind.describes.includes(values[key] as string));
}

async function readValues(file: string): Promise<JsonObject | undefined> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(file);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw invalid(file, `cannot be read (${(cause as NodeJS.ErrnoException).code})`, {}, cause);
  }
  return parseJsonObject(file, 'config', bytes);
}
