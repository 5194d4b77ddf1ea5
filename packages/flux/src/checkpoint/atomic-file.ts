import { randomUUID } from 'node:crypto';
import { open, readdir, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

/** The end of the name of a file that is still being written. */
const TEMPORARY_SUFFIX = '.tmp';

/**
 * Writes a file that others see either whole or not at all: into a temporary neighbour, flushed to the disk, then
 * renamed over `path`. When `write` fails the neighbour is removed and `path` is as it was.
 */
export async function writeAtomically(
  path: string,
  write: (handle: FileHandle) => Promise<void>,
): Promise<void> {
  const temporary = `${path}.${randomUUID()}${TEMPORARY_SUFFIX}`;
  const handle = await open(temporary, 'wx');
  try {
    try {
      await write(handle);
      // Without this a power cut may leave the new name pointing at bytes that never reached the disk.
      await handle.datasync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/** Removes the temporary files of `folder` whose writers died: those not written to for `ageMs`. */
export async function removeAbandoned(folder: string, ageMs: number): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!name.endsWith(TEMPORARY_SUFFIX)) continue;
    const path = join(folder, name);
    const found = await stat(path).catch(() => undefined);
    // Another process may have renamed or removed it meanwhile.
    if (found && Date.now() - found.mtimeMs > ageMs) await rm(path, { force: true });
  }
}
