import { createReadStream } from 'node:fs';
import { buffer } from 'node:stream/consumers';
import { z } from 'zod';
import { LoraSettings, LoraVersion } from '../contracts/lora.ts';
import { AtelierError } from '../errors.ts';
import type { ObjectStore, PutOptions } from '../object-store/types.ts';
import { fileKey, loraPrefix, lorasPrefix, settingsKey, tombstoneKey, versionKey } from './names.ts';
import type { LoraRecord } from './record.ts';

const Tombstone = z.strictObject({ last_version: z.int().min(0), deleted_at: z.iso.datetime() });
type Tombstone = z.infer<typeof Tombstone>;

const JSON_TYPE: PutOptions = Object.freeze({ contentType: 'application/json' });
const FILE_TYPE: PutOptions = Object.freeze({
  contentType: 'application/octet-stream',
  ifNoneMatch: '*',
});
const READS_AT_ONCE = 16;

/** Everything below a LoRA's prefix, also what is hidden. */
export interface LoraContents {
  /** null when there is no visible version. */
  record: LoraRecord | null;
  settings: LoraSettings | null;
  /** Highest number that was ever used, also by an import that did not finish; 0 for none. */
  highest: number;
  keys: readonly string[];
  /** Objects that are not what they should be, for the log. */
  problems: readonly string[];
}

/**
 * LoRAs as objects. Per LoRA: `lora.json` (settings), `<n>/lora.safetensors` and `<n>/version.json` for each version,
 * `tombstone.json` after a delete. What is visible changes by one put each:
 *
 * - a version appears with its `version.json`, created on condition that there is none;
 * - all versions up to a number disappear with the tombstone that has it;
 * - a renamed LoRA appears with the `lora.json` that no longer says `moving_from`.
 *
 * So whatever a crash leaves behind is hidden, and later removed.
 */
export class LoraBucket {
  readonly #store: ObjectStore;

  constructor(store: ObjectStore) {
    this.#store = store;
  }

  /** Names below a tenant's prefix, also those of which nothing is visible. */
  async names(tenant: string): Promise<string[]> {
    const prefix = lorasPrefix(tenant);
    const names = new Set<string>();
    for await (const key of this.#keys(prefix)) names.add(key.slice(prefix.length).split('/', 1)[0]!);
    return [...names];
  }

  async read(tenant: string, name: string): Promise<LoraContents> {
    const keys: string[] = [];
    for await (const key of this.#keys(loraPrefix(tenant, name))) keys.push(key);
    const problems: string[] = [];
    const has = (key: string): boolean => keys.includes(key);
    const document = <T extends z.ZodType>(key: string, schema: T): Promise<z.infer<T> | null> =>
      has(key) ? readJson(this.#store, key, schema, problems) : Promise.resolve(null);
    const [settings, tombstone] = await Promise.all([
      document(settingsKey(tenant, name), LoraSettings),
      document(tombstoneKey(tenant, name), Tombstone),
    ]);
    const deleted = tombstone?.last_version ?? 0;
    const numbers = numbersOf(keys, loraPrefix(tenant, name));
    const versions: LoraVersion[] = [];
    const candidates = numbers.filter((n) => n > deleted && has(versionKey(tenant, name, n)));
    for (let i = 0; i < candidates.length; i += READS_AT_ONCE) {
      const batch = candidates.slice(i, i + READS_AT_ONCE).map(async (version) => {
        const key = versionKey(tenant, name, version);
        const read = await readJson(this.#store, key, LoraVersion, problems);
        return read?.version === version ? read : null;
      });
      versions.push(...(await Promise.all(batch)).filter((version) => version !== null));
    }
    return {
      record: settings?.moving_from === undefined ? recordOf(name, settings, versions) : null,
      settings,
      highest: Math.max(deleted, ...numbers, 0),
      keys,
      problems,
    };
  }

  /**
   * Stores a file and, when it is there, the document that makes it a version.
   * @throws AtelierError `conflict` when another writer has the number
   */
  async addVersion(
    tenant: string,
    name: string,
    path: string,
    version: Omit<LoraVersion, 'etag'>,
  ): Promise<void> {
    const { etag } = await this.#store.put(
      fileKey(tenant, name, version.version),
      createReadStream(path),
      FILE_TYPE,
    );
    const document: LoraVersion = { ...version, etag };
    await this.#writeJson(versionKey(tenant, name, version.version), document, { ifNoneMatch: '*' });
  }

  async writeSettings(tenant: string, name: string, settings: LoraSettings): Promise<void> {
    await this.#writeJson(settingsKey(tenant, name), settings);
  }

  /** Makes every version of a LoRA disappear, then removes its objects but the tombstone. */
  async delete(tenant: string, name: string, contents: LoraContents): Promise<void> {
    const tombstone: Tombstone = { last_version: contents.highest, deleted_at: new Date().toISOString() };
    await this.#writeJson(tombstoneKey(tenant, name), tombstone);
    await this.purge(contents.keys.filter((key) => key !== tombstoneKey(tenant, name)));
  }

  /** Removes objects that nothing visible needs. */
  async purge(keys: readonly string[]): Promise<void> {
    for (const key of keys) await this.#store.delete(key);
  }

  /** Copies one version under another name; the document comes after the file. */
  async copyVersion(tenant: string, from: string, to: string, version: LoraVersion): Promise<void> {
    const target = fileKey(tenant, to, version.version);
    const copied = await this.#store.copy(fileKey(tenant, from, version.version), target);
    const object = copied ? await this.#store.head(target) : null;
    if (!object)
      throw new AtelierError(
        'not_found',
        `The file of ${from}@${version.version} is not in the object store`,
      );
    await this.#writeJson(versionKey(tenant, to, version.version), { ...version, etag: object.etag });
  }

  async *#keys(prefix: string): AsyncGenerator<string> {
    let cursor: string | undefined;
    do {
      const page = await this.#store.list(prefix, cursor === undefined ? {} : { cursor });
      // A folder that is away looks empty, and an index must not be made from that.
      if (page.objects.length === 0) await this.#store.ping();
      for (const { key } of page.objects) yield key;
      cursor = page.cursor;
    } while (cursor !== undefined);
  }

  async #writeJson(
    key: string,
    document: object,
    options: Pick<PutOptions, 'ifNoneMatch'> = {},
  ): Promise<void> {
    await this.#store.put(key, Buffer.from(`${JSON.stringify(document, null, 2)}\n`), {
      ...JSON_TYPE,
      ...options,
    });
  }
}

/**
 * What the store has of one version, without any index: for a worker, to which nothing else is the truth.
 * @returns null when there is no such version
 * @throws AtelierError `lora_invalid` when its document is broken, `store_unavailable`
 */
export async function readLoraVersion(
  store: ObjectStore,
  tenant: string,
  name: string,
  version: number,
): Promise<LoraVersion | null> {
  const problems: string[] = [];
  const read = await readJson(store, versionKey(tenant, name, version), LoraVersion, problems);
  if (problems.length > 0) throw new AtelierError('lora_invalid', problems.join('; '));
  return read;
}

/** null for an object that is not there, and, with a line in `problems`, for one that is not what it should be. */
async function readJson<T extends z.ZodType>(
  store: ObjectStore,
  key: string,
  schema: T,
  problems: string[],
): Promise<z.infer<T> | null> {
  const object = await store.get(key);
  if (!object) return null;
  const bytes = await buffer(object.body).catch((cause: unknown) => {
    throw new AtelierError('store_unavailable', `Reading ${key} failed: ${String(cause)}`, { cause });
  });
  try {
    return schema.parse(JSON.parse(bytes.toString()));
  } catch (error) {
    problems.push(`${key} is not what it should be: ${String(error)}`);
    return null;
  }
}

/** Numbers of the version folders below a LoRA's prefix, ascending. */
function numbersOf(keys: readonly string[], prefix: string): number[] {
  const numbers = keys.map((key) => /^([1-9]\d{0,8})\//.exec(key.slice(prefix.length))?.[1]);
  return [...new Set(numbers)]
    .filter((n) => n !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}

function recordOf(
  name: string,
  settings: LoraSettings | null,
  versions: readonly LoraVersion[],
): LoraRecord | null {
  const [first] = versions;
  const last = versions.at(-1);
  if (!first || !last) return null;
  const { created_at, updated_at, ...rest } = settings ?? newSettings(first.provenance.imported_at);
  const { imported_at } = last.provenance;
  return {
    name,
    ...rest,
    created_at,
    updated_at: updated_at > imported_at ? updated_at : imported_at,
    versions,
  };
}

/** The settings of a LoRA that nobody has described yet. */
export function newSettings(createdAt: string): LoraSettings {
  return {
    description: '',
    default_weight: 1,
    trigger_words: [],
    tags: [],
    created_at: createdAt,
    updated_at: createdAt,
  };
}
