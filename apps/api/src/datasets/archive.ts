import { crc32 } from 'node:zlib';
import { AtelierError } from '@atelier/shared';
import { type Entry, type ZipFile, getFileNameLowLevel, openPromise } from 'yauzl';
import { EntryError, EntryTooLargeError, type UploadedEntry } from './entry.ts';
import { type DatasetLimits, maxFiles, tooManyFiles } from './limits.ts';

export interface Archive {
  readonly entries: readonly UploadedEntry[];
  close(): void;
}

/** Names, extra fields and comments of all entries, which stay in memory while the archive is open. */
const MAX_DIRECTORY_BYTES = 16 * 2 ** 20;
/** A short text can be packed as well as a bomb. */
const RATIO_SLACK_BYTES = 64 * 1024;
const ENCRYPTED_STRONGLY = /strong encryption/;

/**
 * Opens a zip file by its central directory; nothing is unpacked yet.
 *
 * The directory is what the client says: sizes are counted again while an entry is unpacked, and no entry is written
 * anywhere here.
 * @throws AtelierError `dataset_invalid` for what is no zip file or is cut off, `payload_too_large` for too many files
 */
export async function openArchive(path: string, limits: DatasetLimits): Promise<Archive> {
  // Sizes are checked below, entry by entry: the library's own check ends the whole listing without naming the file.
  const options = { lazyEntries: true, autoClose: false, decodeStrings: false, validateEntrySizes: false };
  const zip = await openPromise(path, options).catch((error: unknown) => {
    throw unreadable(error);
  });
  try {
    if (zip.entryCount > maxFiles(limits)) throw tooManyFiles(zip.entryCount, limits);
    return { entries: await list(zip, limits), close: () => zip.close() };
  } catch (error) {
    zip.close();
    throw unreadable(error);
  }
}

async function list(zip: ZipFile, limits: DatasetLimits): Promise<UploadedEntry[]> {
  const entries: UploadedEntry[] = [];
  let directoryBytes = 0;
  let packedBytes = 0;
  for await (const entry of zip.eachEntry()) {
    directoryBytes += entry.fileNameLength + entry.extraFieldLength + entry.fileCommentLength;
    if (directoryBytes > MAX_DIRECTORY_BYTES)
      throw invalidArchive(`the names and comments in it have more than ${MAX_DIRECTORY_BYTES} bytes`);
    packedBytes += entry.compressedSize;
    // Else a small file could be unpacked as often as it has entries.
    if (packedBytes > zip.fileSize) throw invalidArchive('its entries overlap');
    const { generalPurposeBitFlag, fileNameRaw, extraFields } = entry;
    entries.push({
      name: getFileNameLowLevel(generalPurposeBitFlag, fileNameRaw, extraFields, true),
      refusal: refusalOf(entry),
      read: (maxBytes) => unpack(zip, entry, maxBytes, limits.maxRatio),
    });
  }
  return entries;
}

/** Kinds of entries that are no plain files, by the mode that Unix programs store (APPNOTE 4.4.15). */
function refusalOf(entry: Entry): string | null {
  const type = (entry.externalFileAttributes >>> 16) & 0o170000;
  if (type === 0o120000) return 'is a symbolic link';
  if (type !== 0 && type !== 0o100000 && type !== 0o040000) return 'is no plain file';
  if (entry.isEncrypted()) return 'is encrypted';
  if (!entry.canDecodeFileData())
    return `is packed by method ${entry.compressionMethod}; allowed are 0 (stored) and 8 (deflate)`;
  return null;
}

async function unpack(zip: ZipFile, entry: Entry, maxBytes: number, maxRatio: number): Promise<Buffer> {
  const { compressedSize, uncompressedSize } = entry;
  const maxUnpacked = compressedSize * maxRatio + RATIO_SLACK_BYTES;
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    const stream = await zip.openReadStreamPromise(entry);
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      size += chunk.length;
      if (size > uncompressedSize)
        throw new EntryError(`holds more than the ${uncompressedSize} bytes that the archive says`, size);
      if (size > maxBytes) throw new EntryTooLargeError(`has more than ${maxBytes} bytes`, size);
      if (size > maxUnpacked)
        throw new EntryError(`grows to more than ${maxRatio} times its ${compressedSize} packed bytes`, size);
      chunks.push(chunk);
    }
  } catch (error) {
    if (error instanceof EntryError || isSystemError(error)) throw error;
    throw new EntryError(`cannot be unpacked: ${messageOf(error)}`, size, { cause: error });
  }
  const bytes = Buffer.concat(chunks);
  if (size !== uncompressedSize)
    throw new EntryError(`holds ${size} bytes, the archive says ${uncompressedSize}`, size);
  if (crc32(bytes) !== entry.crc32) throw new EntryError('does not match its checksum', size);
  return bytes;
}

/** Errors of the file system are ours; all others are about what the client sent. */
function unreadable(error: unknown): unknown {
  if (error instanceof AtelierError || isSystemError(error)) return error;
  const message = messageOf(error);
  return invalidArchive(
    ENCRYPTED_STRONGLY.test(message) ? 'it is encrypted' : `it is no zip file, or cut off: ${message}`,
  );
}

function invalidArchive(message: string): AtelierError {
  return new AtelierError('dataset_invalid', `archive: ${message}`, {
    errors: [{ field: 'archive', message }],
  });
}

const isSystemError = (error: unknown): boolean =>
  typeof (error as NodeJS.ErrnoException).syscall === 'string';

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
