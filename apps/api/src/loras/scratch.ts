import { randomUUID } from 'node:crypto';
import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** A file that is older than this belongs to no request: its process died. */
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
    const path = join(this.#dir, `${randomUUID()}.safetensors`);
    try {
      return await work(path);
    } finally {
      await rm(path, { force: true });
    }
  }

  /** Removes what crashed processes left. */
  async clean(): Promise<void> {
    for (const name of await readdir(this.#dir).catch(() => [])) {
      const path = join(this.#dir, name);
      const info = await stat(path).catch(() => null);
      if (info && Date.now() - info.mtimeMs > ABANDONED_MS) await rm(path, { force: true });
    }
  }
}
