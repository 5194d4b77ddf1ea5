import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { AtelierError } from '@atelier/shared';
import type { Request } from 'express';

const TYPE = 'application/octet-stream';
/** Silence of a client that sends a file. */
const IDLE_MS = 60_000;

/**
 * Writes the body of a request to a new file.
 *
 * @param path must not exist; what was written stays there when this throws
 * @throws AtelierError unsupported_media_type, payload_too_large, validation_failed for an empty body; the
 * connection's error when the client leaves early
 */
export async function receiveFile(
  req: Request,
  path: string,
  maxBytes: number,
): Promise<{ size: number; sha256: string }> {
  const type = req.get('content-type');
  if (type !== undefined && !req.is(TYPE))
    throw new AtelierError(
      'unsupported_media_type',
      `Content-Type: found ${JSON.stringify(type.slice(0, 80))}, allowed is ${TYPE}, or none`,
    );
  if (Number(req.get('content-length') ?? 0) > maxBytes) throw tooLarge(maxBytes);
  req.setTimeout(IDLE_MS, () => req.destroy(new Error(`nothing came for ${IDLE_MS} ms`)));
  const hash = createHash('sha256');
  let size = 0;
  const file = await open(path, 'wx');
  try {
    // The connection stays: the client is to read the answer.
    for await (const chunk of req.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      size += chunk.byteLength;
      if (size > maxBytes) {
        // Else the rest would be read to keep the connection, however long it is.
        req.res?.set('Connection', 'close');
        throw tooLarge(maxBytes);
      }
      hash.update(chunk);
      await file.writeFile(chunk);
    }
  } finally {
    await file.close();
    req.setTimeout(0);
  }
  if (size === 0)
    throw new AtelierError('validation_failed', 'body: found nothing, allowed is a .safetensors file');
  return { size, sha256: hash.digest('hex') };
}

function tooLarge(maxBytes: number): AtelierError {
  return new AtelierError('payload_too_large', `body: allowed are at most ${maxBytes} bytes`);
}
