import { randomUUID } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import type { Stats } from 'node:fs';
import {
  link,
  mkdir,
  open,
  readFile,
  readdir,
  rename,
  rm,
  rmdir,
  stat,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { dirname, extname, join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { AtelierError } from '../errors.ts';
import { withBodyErrors } from './body.ts';
import { checkKey, checkPrefix } from './keys.ts';
import type { ObjectInfo, ObjectPage, ObjectStore, PutOptions, StoredObject } from './types.ts';

const TYPE_BY_EXTENSION: Readonly<Record<string, string>> = Object.freeze({
  '.png': 'image/png',
  '.jpg': 'image/jpeg',
  '.jpeg': 'image/jpeg',
  '.webp': 'image/webp',
  '.json': 'application/json',
  '.txt': 'text/plain',
  '.zip': 'application/zip',
});
const DEFAULT_TYPE = 'application/octet-stream';

/**
 * A folder as an object store. Below the root:
 *
 * - `objects/<key>`: the bytes, so that a person can open them.
 * - `types/<etag>`: the content type, only where the extension of the key says another one.
 * - `incoming/`: bodies while they are written. One is flushed to disk, then renamed over its key (or hard-linked,
 *   which exactly one of many can do), so a key shows a whole object or none, also after a power cut.
 */
export class FolderStore implements ObjectStore {
  readonly #objects: string;
  readonly #types: string;
  readonly #incoming: string;

  constructor(root: string) {
    this.#objects = join(root, 'objects');
    this.#types = join(root, 'types');
    this.#incoming = join(root, 'incoming');
  }

  put(
    key: string,
    body: Uint8Array | Readable,
    options: PutOptions,
  ): Promise<{ etag: string; size: number }> {
    return withBodyErrors(body, () => this.#translating(key, () => this.#put(key, body, options)));
  }

  async get(
    key: string,
    options: { range?: { start: number; end?: number } } = {},
  ): Promise<StoredObject | null> {
    checkKey(key);
    return this.#translating(key, async () => {
      // One open file from here on: a put that replaces the key meanwhile must not mix two objects.
      const file = await open(join(this.#objects, key)).catch(absentAsNull);
      if (!file) return null;
      try {
        const info = await file.stat({ bigint: true });
        if (!info.isFile()) {
          await file.close();
          return null;
        }
        const object = await this.#describe(key, info);
        const { range } = options;
        if (!range) return { ...object, body: file.createReadStream() };
        const end = Math.min(range.end ?? Infinity, object.size - 1);
        if (range.start > end)
          throw new AtelierError(
            'validation_failed',
            `The range ${range.start}-${range.end ?? ''} is outside the ${object.size} bytes of ${key}`,
          );
        const { start } = range;
        return { ...object, range: { start, end }, body: file.createReadStream({ start, end }) };
      } catch (error) {
        await file.close();
        throw error;
      }
    });
  }

  async head(key: string): Promise<ObjectInfo | null> {
    checkKey(key);
    return this.#translating(key, async () => {
      const info = await stat(join(this.#objects, key), { bigint: true }).catch(absentAsNull);
      return info?.isFile() ? this.#describe(key, info) : null;
    });
  }

  async copy(from: string, to: string): Promise<boolean> {
    checkKey(to);
    // Read and written like any other body: a hard link would share its etag, which names the content type.
    const source = await this.get(from);
    if (!source) return false;
    await this.put(to, source.body, { contentType: source.contentType });
    return true;
  }

  async delete(key: string): Promise<void> {
    checkKey(key);
    await this.#translating(key, async () => {
      const object = await this.head(key);
      if (!object) return;
      await unlink(join(this.#objects, key)).catch(absentAsNull);
      await rm(join(this.#types, object.etag), { force: true });
      // A bucket has no folders: those that became empty go too.
      let folder = dirname(key);
      while (
        folder !== '.' &&
        (await rmdir(join(this.#objects, folder)).then(
          () => true,
          () => false,
        ))
      )
        folder = dirname(folder);
    });
  }

  async list(prefix: string, options: { cursor?: string; limit?: number } = {}): Promise<ObjectPage> {
    checkPrefix(prefix);
    const { cursor = '', limit = 1_000 } = options;
    return this.#translating(prefix, async () => {
      const objects: ObjectInfo[] = [];
      for await (const key of this.#walk('', prefix, cursor)) {
        if (objects.length === limit) return { objects, cursor: objects.at(-1)!.key };
        const object = await this.head(key);
        if (object) objects.push(object);
      }
      return { objects };
    });
  }

  async ping(): Promise<void> {
    await this.#translating('', async () => {
      await this.#makeFolders();
      await readdir(this.#incoming);
    });
  }

  async close(): Promise<void> {}

  async #put(
    key: string,
    body: Uint8Array | Readable,
    options: PutOptions,
  ): Promise<{ etag: string; size: number }> {
    checkKey(key);
    await this.#makeFolders();
    const temporary = join(this.#incoming, randomUUID());
    try {
      const info = await writeDurably(temporary, body);
      const etag = etagOf(info);
      const type = join(this.#types, etag);
      if (options.contentType !== typeByName(key))
        await writeFile(type, options.contentType, { flush: true });
      const previous = await this.head(key);
      try {
        await this.#place(temporary, join(this.#objects, key), options.ifNoneMatch === '*');
      } catch (error) {
        await rm(type, { force: true });
        throw error;
      }
      if (previous) await rm(join(this.#types, previous.etag), { force: true });
      return { etag, size: Number(info.size) };
    } finally {
      await rm(temporary, { force: true });
    }
  }

  async #makeFolders(): Promise<void> {
    for (const folder of [this.#objects, this.#types, this.#incoming])
      await mkdir(folder, { recursive: true });
  }

  async #place(temporary: string, target: string, exclusive: boolean): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      await mkdir(dirname(target), { recursive: true });
      try {
        await (exclusive ? link(temporary, target) : rename(temporary, target));
        return await syncFolder(dirname(target));
      } catch (error) {
        // A delete next door removed the folder while it was still empty.
        if (codeOf(error) !== 'ENOENT' || attempt === 5) throw error;
      }
    }
  }

  async #describe(key: string, info: { size: bigint; mtimeMs: bigint; mtimeNs: bigint; ino: bigint }) {
    const etag = etagOf(info);
    const named = await readFile(join(this.#types, etag), 'utf8').catch(absentAsNull);
    return {
      key,
      size: Number(info.size),
      contentType: named ?? typeByName(key),
      etag,
      modifiedAt: new Date(Number(info.mtimeMs)),
    };
  }

  /** Keys below `folder` that start with `prefix` and come after `cursor`, in order of key. */
  async *#walk(folder: string, prefix: string, cursor: string): AsyncGenerator<string> {
    const entries =
      (await readdir(join(this.#objects, folder), { withFileTypes: true }).catch(absentAsNull)) ?? [];
    // A folder sorts as its keys do: with the slash that follows its name.
    const names = entries
      .map((entry) => folder + entry.name + (entry.isDirectory() ? '/' : ''))
      .sort(byBytes);
    for (const name of names) {
      if (name.endsWith('/')) {
        const mayMatch = name.startsWith(prefix) || prefix.startsWith(name);
        const allBefore = byBytes(name, cursor) < 0 && !cursor.startsWith(name);
        if (mayMatch && !allBefore) yield* this.#walk(name, prefix, cursor);
      } else if (name.startsWith(prefix) && byBytes(name, cursor) > 0) {
        yield name;
      }
    }
  }

  async #translating<T>(key: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof AtelierError) throw error;
      const code = codeOf(error);
      if (['EEXIST', 'ENOTDIR', 'EISDIR', 'ENOTEMPTY'].includes(code) && (await isFolder(this.#objects)))
        throw new AtelierError(
          'conflict',
          `The object ${key} cannot be created: the key, or one it contains, exists`,
          {
            cause: error,
          },
        );
      throw new AtelierError('store_unavailable', `The folder store failed: ${String(error)}`, {
        cause: error,
      });
    }
  }
}

async function writeDurably(path: string, body: Uint8Array | Readable) {
  const file = await open(path, 'wx');
  try {
    if (body instanceof Readable)
      await pipeline(body, createWriteStream(path, { fd: file.fd, autoClose: false }));
    else await file.writeFile(body);
    await file.sync();
    return await file.stat({ bigint: true });
  } finally {
    await file.close();
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path).catch(() => null);
  try {
    await folder?.sync();
  } catch {
    // Some file systems cannot sync a folder; the file itself is safe.
  } finally {
    await folder?.close();
  }
}

/** Changes with every put: a body gets a new file. */
function etagOf({ size, mtimeNs, ino }: { size: bigint; mtimeNs: bigint; ino: bigint }): string {
  return [ino, size, mtimeNs].map((part) => part.toString(36)).join('-');
}

function typeByName(key: string): string {
  return TYPE_BY_EXTENSION[extname(key)] ?? DEFAULT_TYPE;
}

const byBytes = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? '';

/** ENOTDIR too: `a/b` is absent when `a` is an object. */
function absentAsNull(error: unknown): null {
  if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return null;
  throw error;
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (info: Stats) => info.isDirectory(),
    () => false,
  );
}
