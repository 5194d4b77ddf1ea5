import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import type { Dataset, DatasetUpload } from '@atelier/shared';
import { ZipFile } from 'yazl';
import type { StudioClient } from './client.ts';
import { CliError } from './errors.ts';

/** A file on this machine and its path in the dataset. */
export interface LocalFile {
  path: string;
  name: string;
}

/** Bytes of a zip archive whose number is known before the first is read. */
interface Archive {
  size: number;
  stream: Readable;
}

/** An archive as it is. */
export const archiveOfFile = (path: string, size: number): Archive => ({
  size,
  stream: createReadStream(path),
});

/** Files as an archive that is made while it is read; stored, since pictures do not get smaller. */
export async function archiveOfFiles(files: readonly LocalFile[]): Promise<Archive> {
  const zip = new ZipFile();
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const stream = zip.outputStream as Readable;
  zip.on('error', (error: Error) => {
    reject(error);
    stream.destroy(error);
  });
  for (const { path, name } of files) zip.addFile(path, name, { compress: false });
  // Its types leave the argument out.
  zip.end({ forceZip64Format: false, comment: '' }, resolve as () => void);
  const size = await promise.catch((cause: unknown) => {
    throw new CliError('file_missing', `The files cannot be read: ${String(cause)}`, { cause });
  });
  return { size, stream };
}

/**
 * Sends an archive to where the studio wants it, its bucket if it has one, and makes it a dataset.
 * @throws CliError with the problem's code; `upload_failed` when the bucket does not take it
 */
export async function uploadArchive(
  client: StudioClient,
  name: string,
  { size, stream }: Archive,
  onProgress: (sent: number) => void,
): Promise<Dataset> {
  try {
    const upload = await client.post<DatasetUpload>('/v1/datasets/uploads', { name, size });
    await send(upload, { size, stream }, onProgress);
    return await client.post<Dataset>(`/v1/datasets/uploads/${upload.id}/complete`, {});
  } finally {
    stream.destroy();
  }
}

async function send(
  { url, method, headers }: DatasetUpload,
  { size, stream }: Archive,
  onProgress: (sent: number) => void,
): Promise<void> {
  let sent = 0;
  async function* counted() {
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      yield chunk;
      sent += chunk.byteLength;
      onProgress(sent);
    }
  }
  const { host } = new URL(url);
  const response = await fetch(url, {
    method,
    // A bucket takes nothing of unknown length.
    headers: { ...headers, 'Content-Length': String(size) },
    body: counted(),
    duplex: 'half',
  }).catch((cause: unknown) => {
    const reason = cause instanceof Error && cause.cause ? cause.cause : cause;
    throw new CliError('upload_failed', `${host} does not take the archive: ${String(reason)}`, { cause });
  });
  if (response.ok) return;
  const text = (await response.text()).slice(0, 300);
  throw new CliError('upload_failed', `${host} does not take the archive: ${response.status} ${text}`);
}
