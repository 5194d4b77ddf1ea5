import { open, stat, type FileHandle } from 'node:fs/promises';
import type { Stats } from 'node:fs';
import type { FluxError } from '../errors.ts';
import { invalid, missing } from './problems.ts';

/** One read of the operating system; Node refuses 2 GiB and more, and large ones only hold up the thread pool. */
const READ_BYTES = 64 * 1024 * 1024;

/** Runs `use` on the opened file and closes it whatever happens. */
export async function withFile<T>(
  path: string,
  use: (handle: FileHandle, size: number) => Promise<T>,
): Promise<T> {
  const handle = await openRegular(path);
  try {
    return await use(handle, (await handle.stat()).size);
  } finally {
    await handle.close();
  }
}

/** Opens a regular file for reading; anything else is refused before it is opened, since a pipe would hang. */
export async function openRegular(path: string): Promise<FileHandle> {
  if (!(await statPath(path)).isFile()) throw invalid(path, 'is not a regular file');
  try {
    return await open(path, 'r');
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

/** @throws FluxError `checkpoint_missing` when nothing is there */
export async function statPath(path: string): Promise<Stats> {
  try {
    return await stat(path);
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

function unreadable(path: string, cause: unknown): FluxError {
  const { code } = cause as NodeJS.ErrnoException;
  return code === 'ENOENT' || code === 'ENOTDIR'
    ? missing(path, 'there is no such file or folder', {}, cause)
    : invalid(path, `cannot be read (${code})`, {}, cause);
}

/** Fills `target` from `position` of the file; a file that ends earlier is an error. */
export async function readInto(
  handle: FileHandle,
  path: string,
  target: Uint8Array,
  position: number,
): Promise<void> {
  let done = 0;
  while (done < target.byteLength) {
    const length = Math.min(target.byteLength - done, READ_BYTES);
    const { bytesRead } = await handle.read(target, done, length, position + done).catch((cause: unknown) => {
      throw unreadable(path, cause);
    });
    if (bytesRead === 0) {
      throw invalid(path, `ends at byte ${position + done}; ${target.byteLength - done} more were expected`);
    }
    done += bytesRead;
  }
}

/** Writes all of `source` at `position` of the file. */
export async function writeFrom(handle: FileHandle, source: Uint8Array, position: number): Promise<void> {
  let done = 0;
  while (done < source.byteLength) {
    const { bytesWritten } = await handle.write(source, done, source.byteLength - done, position + done);
    done += bytesWritten;
  }
}

/** A buffer of its own memory, not zeroed: for bytes that are read at once. */
export function uninitialized(byteLength: number): Uint8Array {
  const buffer = Buffer.allocUnsafeSlow(byteLength);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, byteLength);
}
