import { buffer } from 'node:stream/consumers';
import { Dataset, type DatasetFile } from '../contracts/dataset.ts';
import { AtelierError } from '../errors.ts';
import type { ObjectStore } from '../object-store/types.ts';
import {
  datasetFileKey,
  idTime,
  datasetKey,
  datasetPrefix,
  datasetsPrefix,
  isDatasetId,
  newDatasetId,
} from './names.ts';

/** A checked file that is to become part of a dataset. */
export interface NewDatasetFile {
  file: DatasetFile;
  contentType: string;
  /** Its bytes; asked for once, when it is stored. */
  read: () => Promise<Uint8Array>;
}

export interface NewDataset {
  name: string;
  warnings: readonly string[];
  files: readonly NewDatasetFile[];
}

/** Files in memory at once while a dataset is stored. */
const PUTS_AT_ONCE = 4;
/** Objects of a dataset that is still not there after this belong to no upload: its process died. */
const ABANDONED_MS = 24 * 3_600_000;

/**
 * Datasets as objects: `images/...`, `prompts/...` and `dataset.json`, which is written last, on condition that there
 * is none, and removed first. So a dataset is visible wholly or not at all, and never changes.
 *
 * Every method rejects with AtelierError `store_unavailable` while the store is away.
 */
export class DatasetStore {
  readonly #store: ObjectStore;

  constructor(store: ObjectStore) {
    this.#store = store;
  }

  /**
   * Stores files and makes them a dataset; on an error none of them stays.
   * @param id of {@link newDatasetId}, never given before
   */
  async add(
    tenant: string,
    { name, warnings, files }: NewDataset,
    id: string = newDatasetId(),
  ): Promise<Dataset> {
    const dataset: Dataset = {
      id,
      name,
      items: files.filter(({ file }) => file.path.startsWith('images/')).length,
      bytes: files.reduce((sum, { file }) => sum + file.size, 0),
      created_at: new Date().toISOString(),
      warnings: [...warnings],
      files: files.map(({ file }) => file),
    };
    try {
      for (let i = 0; i < files.length; i += PUTS_AT_ONCE)
        await allOf(files.slice(i, i + PUTS_AT_ONCE).map((file) => this.#putFile(tenant, id, file)));
      await this.#store.put(
        datasetKey(tenant, id),
        Buffer.from(`${JSON.stringify(Dataset.parse(dataset), null, 2)}\n`),
        {
          contentType: 'application/json',
          ifNoneMatch: '*',
        },
      );
    } catch (error) {
      // Where the store is away this fails too, and sweep() does it later.
      await this.delete(tenant, id).catch(() => {});
      throw error;
    }
    return dataset;
  }

  /** null when the tenant has no such dataset. */
  async get(tenant: string, id: string): Promise<Dataset | null> {
    if (!isDatasetId(id)) return null;
    const key = datasetKey(tenant, id);
    const object = await this.#store.get(key);
    if (!object) {
      // A folder that is away looks empty.
      await this.#store.ping();
      return null;
    }
    const bytes = await buffer(object.body).catch((cause: unknown) => {
      throw new AtelierError('store_unavailable', `Reading ${key} failed: ${String(cause)}`, { cause });
    });
    return Dataset.parse(JSON.parse(bytes.toString()));
  }

  /** A page, oldest first; `cursor` is that of the page before. */
  async list(
    tenant: string,
    { cursor, limit = 50 }: { cursor?: string | undefined; limit?: number } = {},
  ): Promise<{ datasets: Dataset[]; cursor: string | null }> {
    const datasets: Dataset[] = [];
    for await (const { id, visible } of this.#ids(tenant, cursor)) {
      if (!visible) continue;
      if (datasets.length === limit) return { datasets, cursor: datasets.at(-1)!.id };
      // Deleted between the listing and here: it is on no page.
      const dataset = await this.get(tenant, id);
      if (dataset) datasets.push(dataset);
    }
    return { datasets, cursor: null };
  }

  /** Makes a dataset disappear, then removes its files. Without effect when there is none. */
  async delete(tenant: string, id: string): Promise<void> {
    await this.#store.delete(datasetKey(tenant, id));
    for (let cursor: string | undefined, first = true; first || cursor !== undefined; first = false) {
      const page = await this.#store.list(datasetPrefix(tenant, id), cursor === undefined ? {} : { cursor });
      for (const { key } of page.objects) await this.#store.delete(key);
      cursor = page.cursor;
    }
  }

  /**
   * Removes what uploads and deletes left whose process died.
   * @param now milliseconds since 1970
   */
  async sweep(tenant: string, now = Date.now()): Promise<void> {
    for await (const { id, visible } of this.#ids(tenant))
      if (!visible && now - idTime(id) > ABANDONED_MS) await this.delete(tenant, id);
  }

  /** Every id below the tenant's prefix: one listing of one object each, however many files a dataset has. */
  async *#ids(tenant: string, after?: string): AsyncGenerator<{ id: string; visible: boolean }> {
    const prefix = datasetsPrefix(tenant);
    // The character after the slash: it sorts behind every key of the dataset before.
    const behind = (id: string): string => `${prefix}${id}0`;
    let cursor = after === undefined ? undefined : behind(after);
    for (;;) {
      const { objects } = await this.#store.list(prefix, {
        limit: 1,
        ...(cursor === undefined ? {} : { cursor }),
      });
      const [object] = objects;
      if (!object) {
        await this.#store.ping();
        return;
      }
      const id = object.key.slice(prefix.length).split('/', 1)[0]!;
      if (isDatasetId(id)) yield { id, visible: object.key === datasetKey(tenant, id) };
      cursor = behind(id);
    }
  }

  async #putFile(tenant: string, id: string, { file, contentType, read }: NewDatasetFile): Promise<void> {
    await this.#store.put(datasetFileKey(tenant, id, file.path), await read(), { contentType });
  }
}

/** Like Promise.all, but nothing is still under way when it rejects. */
async function allOf(work: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(work)).find((result) => result.status === 'rejected');
  if (failed) throw failed.reason;
}
