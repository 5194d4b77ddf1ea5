import { createReadStream, createWriteStream } from 'node:fs';
import { mkdir, readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import {
  AtelierError,
  type JobRef,
  type ObjectStore,
  trainingCheckpointKey,
  trainingResumeKey,
} from '@atelier/shared';

interface Resume {
  folder: string;
  files: string[];
}

/** The checkpoint in the object store that a training's next attempt goes on from. */
export class Checkpoints {
  readonly #store: ObjectStore;
  readonly #ref: JobRef;

  constructor(store: ObjectStore, ref: JobRef) {
    this.#store = store;
    this.#ref = ref;
  }

  /** Stores a checkpoint folder in place of the one before. A crash at any point leaves one of the two whole. */
  async save(folder: string): Promise<void> {
    const before = await this.#read();
    const name = basename(folder);
    const files = await readdir(folder);
    for (const file of files)
      await this.#store.put(
        trainingCheckpointKey(this.#ref, name, file),
        createReadStream(join(folder, file)),
        { contentType: 'application/octet-stream' },
      );
    const resume: Resume = { folder: name, files };
    await this.#store.put(trainingResumeKey(this.#ref), Buffer.from(JSON.stringify(resume)), {
      contentType: 'application/json',
    });
    if (before && before.folder !== name) await this.#deleteFiles(before);
  }

  /**
   * Copies the checkpoint into a folder below `outputDir`.
   * @returns that folder; null when there is no checkpoint
   */
  async restore(outputDir: string): Promise<string | null> {
    const resume = await this.#read();
    if (!resume) return null;
    const folder = join(outputDir, resume.folder);
    await mkdir(folder, { recursive: true });
    for (const file of resume.files) {
      const key = trainingCheckpointKey(this.#ref, resume.folder, file);
      const object = await this.#store.get(key);
      if (!object) throw new AtelierError('store_unavailable', `${key} is missing`);
      await pipeline(object.body, createWriteStream(join(folder, file)));
    }
    return folder;
  }

  /** Nothing goes on from here any more. */
  async clear(): Promise<void> {
    const resume = await this.#read();
    if (!resume) return;
    await this.#store.delete(trainingResumeKey(this.#ref));
    await this.#deleteFiles(resume);
  }

  async #read(): Promise<Resume | null> {
    const object = await this.#store.get(trainingResumeKey(this.#ref));
    return object && (JSON.parse((await buffer(object.body)).toString()) as Resume);
  }

  async #deleteFiles({ folder, files }: Resume): Promise<void> {
    for (const file of files) await this.#store.delete(trainingCheckpointKey(this.#ref, folder, file));
  }
}
