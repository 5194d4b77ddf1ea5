import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { basename, extname } from 'node:path';
import { Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import {
  AtelierError,
  type DatasetUploadRecord,
  type DatasetUploadRequest,
  LORA_NAME,
} from '@atelier/shared';
import type { Request } from 'express';
import { bodyChunks } from '../uploads/receive.ts';
import { invalid } from '../validation/validate.ts';

/**
 * The name of the dataset that an archive is to become: `Ink Wash.zip` is `ink-wash` unless another one is given.
 * @throws AtelierError validation_failed when there is neither name nor a usable file name
 */
export function nameOf({ name, filename }: DatasetUploadRequest): string {
  if (name !== undefined) return name;
  if (filename === undefined)
    throw invalid([{ field: 'name', message: 'found nothing; needed is a name, or a filename to make one' }]);
  const words = basename(filename, extname(filename)).toLowerCase().normalize('NFKD');
  const made = words
    .replaceAll(/[^a-z0-9._]+/g, '-')
    .replaceAll(/^[-._]+|-+$/g, '')
    .slice(0, 64);
  if (LORA_NAME.test(made)) return made;
  const message = `found ${JSON.stringify(filename.slice(0, 64))}, of which no name can be made; give a name`;
  throw invalid([{ field: 'filename', message }]);
}

/**
 * The body of a request that must have the announced size, as a stream.
 * @throws AtelierError payload_too_large or validation_failed for another size: before anything is read when the
 * request says it, else as the stream's error; the connection's error when the client leaves early
 */
export function announcedBody(req: Request, size: number): Readable {
  const refuse = (found: number): never => {
    throw new AtelierError('validation_failed', `body: found ${found} bytes, announced were ${size}`);
  };
  const said = req.get('content-length');
  if (said !== undefined && Number(said) < size) refuse(Number(said));
  return Readable.from(
    (async function* exactly() {
      let received = 0;
      for await (const chunk of bodyChunks(req, size)) {
        received += chunk.byteLength;
        yield chunk;
      }
      if (received < size) refuse(received);
    })(),
    { objectMode: false },
  );
}

/**
 * Writes an archive that was sent to a new file.
 * @throws AtelierError dataset_invalid when it is not the one that was announced
 */
export async function fetchArchive(
  archive: Readable,
  path: string,
  { sha256 }: Pick<DatasetUploadRecord, 'sha256'>,
): Promise<void> {
  const hash = createHash('sha256');
  const hashing = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk);
      done(null, chunk);
    },
  });
  // What the store fails with is not the client's fault, and told from a full disk here by where it comes from.
  let lost: unknown;
  archive.once('error', (error) => (lost = error));
  await pipeline(archive, hashing, createWriteStream(path, { flags: 'wx' })).catch((error: unknown) => {
    if (error !== lost) throw error;
    throw new AtelierError('store_unavailable', `Reading the archive failed: ${String(error)}`, {
      cause: error,
    });
  });
  const found = hash.digest('hex');
  if (sha256 === null || found === sha256) return;
  const message = `found ${found}, announced was ${sha256}`;
  throw new AtelierError('dataset_invalid', `sha256: ${message}`, { errors: [{ field: 'sha256', message }] });
}
