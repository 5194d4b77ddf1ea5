import { resolve } from 'node:path';
import type { FileHandle } from 'node:fs/promises';
import { DTYPE_BYTES } from './dtypes.ts';
import { openRegular, readInto, uninitialized, withFile } from './files.ts';
import { invalid } from './problems.ts';
import { parseHeader, type SafetensorsHeader, type TensorInfo } from './safetensors-header.ts';

export { writeSafetensors, type TensorEntry } from './safetensors-writer.ts';
export type { TensorInfo } from './safetensors-header.ts';

/** The limit of the reference implementation; FLUX.1's header has 0.1 MB. */
const MAX_HEADER_BYTES = 100_000_000n;
const LENGTH_BYTES = 8;

/** A safetensors file of which only the header was read. */
export interface SafetensorsFile extends SafetensorsHeader {
  /** Absolute path. */
  readonly path: string;
  readonly size: number;
}

/** What the readers need of a tensor; TensorInfo and TensorView both are this. */
export type StoredRange = Pick<TensorInfo, 'dtype' | 'file' | 'offset' | 'byteLength'>;

/**
 * Reads and checks the header of a safetensors file; the tensors stay where they are.
 *
 * @throws FluxError `checkpoint_missing` when there is no such file, `checkpoint_invalid` when it is malformed, cut
 *   short or does not add up, `checkpoint_unsupported` for an unknown dtype
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = resolve(path);
  return withFile(file, async (handle, size) => {
    const bytes = await readHeader(handle, file, size);
    return { path: file, size, ...parseHeader(file, bytes.subarray(LENGTH_BYTES), bytes.byteLength, size) };
  });
}

/** The length prefix and the JSON part, as they lie at the start of the file. */
export async function readHeader(handle: FileHandle, file: string, size: number): Promise<Uint8Array> {
  if (size < LENGTH_BYTES) {
    throw invalid(file, `has ${size} bytes; a safetensors file has at least ${LENGTH_BYTES}`, {
      found: size,
    });
  }
  const prefix = Buffer.alloc(LENGTH_BYTES);
  await readInto(handle, file, prefix, 0);
  const length = prefix.readBigUInt64LE(0);
  const limit =
    BigInt(size - LENGTH_BYTES) < MAX_HEADER_BYTES ? BigInt(size - LENGTH_BYTES) : MAX_HEADER_BYTES;
  if (length > limit) {
    throw invalid(file, `claims a header of ${length} bytes; at most ${limit} are possible`, {
      found: String(length),
      allowed: Number(limit),
    });
  }
  const bytes = uninitialized(LENGTH_BYTES + Number(length));
  await readInto(handle, file, bytes, 0);
  return bytes;
}

/** All bytes of a tensor, in memory of their own. */
export async function readTensor(range: StoredRange): Promise<Uint8Array> {
  const bytes = uninitialized(range.byteLength);
  await withFile(range.file, (handle) => readInto(handle, range.file, bytes, range.offset));
  return bytes;
}

/**
 * The bytes of a tensor in pieces of at most `chunkBytes` that never cut an element, so that memory stays bounded
 * whatever the size of the tensor.
 */
export async function* readChunks(
  range: StoredRange,
  chunkBytes: number,
): AsyncGenerator<Uint8Array, void, void> {
  const element = DTYPE_BYTES[range.dtype];
  const step = Math.floor(chunkBytes / element) * element;
  if (!(step > 0)) throw new RangeError(`a chunk of ${chunkBytes} bytes holds no ${range.dtype} element`);
  const end = range.offset + range.byteLength;
  const handle = await openRegular(range.file);
  try {
    for (let position = range.offset; position < end; position += step) {
      const bytes = uninitialized(Math.min(step, end - position));
      await readInto(handle, range.file, bytes, position);
      yield bytes;
    }
  } finally {
    await handle.close();
  }
}
