import { createHash, randomUUID } from 'node:crypto';
import { createReadStream, createWriteStream, rmSync } from 'node:fs';
import type { Stats } from 'node:fs';
import { mkdir, readdir, rename, rm, stat, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Style } from '@atelier/flux';
import { AtelierError, fileKey, parseLoraRef, readLoraVersion } from '@atelier/shared';
import type { LoraVersion, ObjectStore, PinnedStyle, WorkerMetrics } from '@atelier/shared';
import { LRUCache } from 'lru-cache';

const EXTENSION = '.safetensors';
const TEMPORARY = '.part';
/** A download that has not moved for so long belongs to a process that died. */
const ABANDONED_MS = 3_600_000;

export interface StyleCacheOptions {
  /** Made when it is not there; several workers of one machine may share it. */
  dir: string;
  maxBytes: number;
  store: ObjectStore;
  metrics: Pick<WorkerMetrics, 'styleCache' | 'styleFetched' | 'styleBytes'>;
}

/** Styles as files of this machine; none of them is evicted before `release`. */
export interface HeldStyles {
  styles: Style[];
  /** A message of the engine with the LoRAs' names in place of their paths, which are nobody's business. */
  named: (text: string) => string;
  release: () => void;
}

/**
 * LoRA files on disk, each named by its content's SHA-256, so that a name that is published anew, renamed or deleted
 * can never lead to the wrong bytes.
 *
 * A file is trusted when this process has read all of it: fetched it, or hashed it at its first use. If size or time
 * of modification differ later, it is hashed again, and fetched again when it is damaged or gone.
 */
export class StyleCache {
  readonly #options: StyleCacheOptions;
  /** Bytes of the files on disk by SHA-256. */
  readonly #files: LRUCache<string, number>;
  readonly #holders = new Map<string, number>();
  /** Evicted while in use; removed when the last holder lets go. */
  readonly #condemned = new Set<string>();
  readonly #trusted = new Map<string, string>();
  readonly #fetching = new Map<string, Promise<void>>();
  #opened: Promise<void> | null = null;

  constructor(options: StyleCacheOptions) {
    this.#options = options;
    this.#files = new LRUCache<string, number>({
      // lru-cache takes no limit of 0; every file is then larger than the cache, and removed after use.
      maxSize: Math.max(options.maxBytes, 1),
      sizeCalculation: (size) => Math.max(size, 1),
      dispose: (_size, sha256, reason) => {
        if (reason !== 'set') this.#evict(sha256);
      },
    });
  }

  /**
   * The files of a job's styles, fetched where they are not here.
   * @throws AtelierError `unknown_lora`, `lora_invalid` when the stored file is not what its version says,
   * `store_unavailable`; the reason of `signal` when it aborts
   */
  async hold(tenant: string, styles: readonly PinnedStyle[], signal: AbortSignal): Promise<HeldStyles> {
    if (styles.length === 0) return { styles: [], named: (text) => text, release: () => {} };
    await (this.#opened ??= this.#open());
    const held: string[] = [];
    const release = (): void => {
      for (const sha256 of held.splice(0)) this.#release(sha256);
    };
    try {
      const files: Style[] = [];
      const names = new Map<string, string>();
      for (const { lora, weight } of styles) {
        const version = await this.#version(tenant, lora);
        this.#holders.set(version.sha256, (this.#holders.get(version.sha256) ?? 0) + 1);
        held.push(version.sha256);
        await this.#ensure(tenant, lora, version, signal);
        files.push({ file: this.#path(version.sha256), key: `${lora}:${version.sha256}`, weight });
        names.set(this.#path(version.sha256), lora);
      }
      return { styles: files, named: (text) => withNames(text, names), release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Read each time: a small object, and the only way to know what the name stands for. */
  async #version(tenant: string, lora: string): Promise<LoraVersion> {
    const ref = parseLoraRef(lora);
    const version =
      ref?.version === null || !ref
        ? null
        : await readLoraVersion(this.#options.store, tenant, ref.name, ref.version);
    if (!version) throw await this.#missing(`The LoRA ${lora}`);
    return version;
  }

  async #ensure(tenant: string, lora: string, version: LoraVersion, signal: AbortSignal): Promise<void> {
    const { metrics } = this.#options;
    const { sha256 } = version;
    if (await this.#isSound(sha256, version.size)) {
      metrics.styleCache.inc({ result: 'hit' });
    } else {
      metrics.styleCache.inc({ result: 'miss' });
      const fetching =
        this.#fetching.get(sha256) ??
        this.#fetch(tenant, lora, version, signal).finally(() => this.#fetching.delete(sha256));
      this.#fetching.set(sha256, fetching);
      await fetching;
    }
    this.#condemned.delete(sha256);
    this.#files.set(sha256, version.size);
    // Larger than the whole cache: it goes when the job has ended.
    if (!this.#files.has(sha256)) this.#condemned.add(sha256);
    metrics.styleBytes.set(this.#files.calculatedSize);
  }

  /** Whether the file is there with the bytes that it should have; marks it as used for other processes too. */
  async #isSound(sha256: string, size: number): Promise<boolean> {
    const path = this.#path(sha256);
    const info = await stat(path).catch(() => null);
    if (!info?.isFile() || info.size !== size) return false;
    const seen = stampOf(info);
    if (this.#trusted.get(sha256) !== seen) {
      if ((await hashOf(createReadStream(path))) !== sha256) return false;
      this.#trusted.set(sha256, seen);
    }
    await utimes(path, new Date(), new Date(Math.round(info.mtimeMs))).catch(() => {});
    return true;
  }

  async #fetch(tenant: string, lora: string, version: LoraVersion, signal: AbortSignal): Promise<void> {
    const { dir, metrics, store } = this.#options;
    const { name, version: number } = parseLoraRef(lora)!;
    const object = await store.get(fileKey(tenant, name, number!));
    if (!object) throw await this.#missing(`The file of ${lora}`);
    const path = this.#path(version.sha256);
    const temporary = join(dir, `${version.sha256}-${randomUUID()}${TEMPORARY}`);
    try {
      const sha256 = await download(object.body, temporary, lora, signal);
      metrics.styleFetched.inc(object.size);
      if (sha256 !== version.sha256)
        throw new AtelierError(
          'lora_invalid',
          `The stored file of ${lora} is damaged: its SHA-256 is ${sha256}, expected ${version.sha256}`,
        );
      await rename(temporary, path);
      this.#trusted.set(version.sha256, stampOf(await stat(path)));
    } finally {
      await rm(temporary, { force: true });
    }
  }

  /** A folder that is away looks empty: the store must show that it is there before a job ends for good. */
  async #missing(what: string): Promise<AtelierError> {
    await this.#options.store.ping();
    return new AtelierError('unknown_lora', `${what} is not in the object store`);
  }

  #release(sha256: string): void {
    const left = (this.#holders.get(sha256) ?? 1) - 1;
    if (left > 0) {
      this.#holders.set(sha256, left);
      return;
    }
    this.#holders.delete(sha256);
    if (this.#condemned.delete(sha256)) this.#evict(sha256);
  }

  #evict(sha256: string): void {
    if (this.#holders.has(sha256)) {
      this.#condemned.add(sha256);
      return;
    }
    this.#trusted.delete(sha256);
    // Not later: by then another job may have found the file and count on it.
    rmSync(this.#path(sha256), { force: true });
    this.#options.metrics.styleBytes.set(this.#files.calculatedSize);
  }

  /** Takes over what earlier processes left, the least recently used first. */
  async #open(): Promise<void> {
    const { dir } = this.#options;
    await mkdir(dir, { recursive: true });
    const found: { sha256: string; size: number; usedAt: number }[] = [];
    for (const name of await readdir(dir)) {
      const path = join(dir, name);
      const info = await stat(path).catch(() => null);
      if (!info) continue;
      if (name.endsWith(TEMPORARY)) {
        if (Date.now() - info.mtimeMs > ABANDONED_MS) await rm(path, { force: true });
      } else if (/^[0-9a-f]{64}\.safetensors$/.test(name)) {
        found.push({ sha256: name.slice(0, 64), size: info.size, usedAt: info.atimeMs });
      }
    }
    found.sort((a, b) => a.usedAt - b.usedAt);
    for (const { sha256, size } of found) {
      this.#files.set(sha256, size);
      if (!this.#files.has(sha256)) this.#evict(sha256);
    }
    this.#options.metrics.styleBytes.set(this.#files.calculatedSize);
  }

  #path(sha256: string): string {
    return join(this.#options.dir, `${sha256}${EXTENSION}`);
  }
}

function withNames(text: string, names: ReadonlyMap<string, string>): string {
  return [...names].reduce((named, [path, name]) => named.replaceAll(path, name), text);
}

/** Changes when somebody writes to the file; whole milliseconds are what `utimes` gives back as they were. */
function stampOf({ ino, size, mtimeMs }: Stats): string {
  return `${ino}-${size}-${Math.round(mtimeMs)}`;
}

/** Writes the body to a new file. @returns its SHA-256 */
async function download(body: Readable, path: string, lora: string, signal: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  let broken: unknown = null;
  body.once('error', (error) => (broken = error));
  try {
    await pipeline(
      body,
      async function* (chunks: AsyncIterable<Buffer>) {
        for await (const chunk of chunks) {
          hash.update(chunk);
          yield chunk;
        }
      },
      createWriteStream(path, { flags: 'wx' }),
      { signal },
    );
  } catch (error) {
    if (signal.aborted || error !== broken) throw error;
    throw new AtelierError('store_unavailable', `Fetching ${lora} broke off: ${String(error)}`, {
      cause: error,
    });
  }
  return hash.digest('hex');
}

async function hashOf(stream: Readable): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of stream as AsyncIterable<Buffer>) hash.update(chunk);
  return hash.digest('hex');
}
