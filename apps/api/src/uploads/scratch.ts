import { randomUUID } from 'node:crypto';
import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** What is older than this belongs to no request: its process died. */
const ABANDONED_MS = 24 * 3_600_000;

/** A folder for files that live as long as one request. */
export class ScratchFolder {
  readonly #dir: string;

  constructor(cacheDir: string) {
    this.#dir = join(cacheDir, 'uploads');
  }

  /** Gives `work` the path of a file that is not there yet, and removes what is there afterwards. */
  async use<T>(work: (path: string) => Promise<T>): Promise<T> {
    await mkdir(this.#dir, { recursive: true });
    return this.#removing(join(this.#dir, `${randomUUID()}.safetensors`), work);
  }

  /** Gives `work` an empty folder, and removes it with all that is in it afterwards. */
  async useFolder<T>(work: (path: string) => Promise<T>): Promise<T> {
    const path = join(this.#dir, randomUUID());
    await mkdir(path, { recursive: true });
    return this.#removing(path, work);
  }

  /** Removes what crashed processes left. */
  async clean(): Promise<void> {
    for (const name of await readdir(this.#dir).catch(() => [])) {
      const path = join(this.#dir, name);
      const info = await stat(path).catch(() => null);
      if (info && Date.now() - info.mtimeMs > ABANDONED_MS) await remove(path);
    }
  }

  async #removing<T>(path: string, work: (path: string) => Promise<T>): Promise<T> {
    try {
      return await work(path);
    } finally {
      await remove(path);
    }
  }
}

const remove = (path: string): Promise<void> => rm(path, { recursive: true, force: true });
