import { randomUUID } from 'node:crypto';
import { open, rename, rm, type FileHandle } from 'node:fs/promises';

/** The end of the name of a file that is still being written. */
export const TEMPORARY_SUFFIX = '.tmp';

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
