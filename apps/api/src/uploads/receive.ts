import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { AtelierError } from '@atelier/shared';
import type { Request } from 'express';

/** Silence of a client that sends a file. */
const IDLE_MS = 60_000;

/**
 * The body of a request, chunk by chunk. Where the reader stops early, the rest is never read: the connection ends
 * with the answer.
 * @throws AtelierError payload_too_large; the connection's error when the client leaves early
 */
export async function* bodyChunks(req: Request, maxBytes: number): AsyncGenerator<Buffer> {
  if (Number(req.get('content-length') ?? 0) > maxBytes) throw tooLarge(maxBytes);
  req.setTimeout(IDLE_MS, () => req.destroy(new Error(`nothing came for ${IDLE_MS} ms`)));
  let size = 0;
  let whole = false;
  try {
    // The connection stays: the client is to read the answer.
    for await (const chunk of req.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      size += chunk.byteLength;
      if (size > maxBytes) throw tooLarge(maxBytes);
      yield chunk;
    }
    whole = true;
  } finally {
    // Else the rest would be read to keep the connection, however long it is.
    if (!whole && !req.res?.headersSent) req.res?.set('Connection', 'close');
    req.setTimeout(0);
  }
}

/**
 * Writes the body of a request to a new file.
 *
 * @param path must not exist; what was written stays there when this throws
 * @param what the file is, for the message about an empty body
 * @throws AtelierError payload_too_large, validation_failed for an empty body; the connection's error when the client
 * leaves early
 */
export async function receiveFile(
  req: Request,
  path: string,
  { maxBytes, what }: { maxBytes: number; what: string },
): Promise<{ size: number; sha256: string }> {
  const hash = createHash('sha256');
  let size = 0;
  const file = await open(path, 'wx');
  try {
    for await (const chunk of bodyChunks(req, maxBytes)) {
      size += chunk.byteLength;
      hash.update(chunk);
      await file.writeFile(chunk);
    }
  } finally {
    await file.close();
  }
  if (size === 0) throw new AtelierError('validation_failed', `body: found nothing, allowed is ${what}`);
  return { size, sha256: hash.digest('hex') };
}

/** The error of a body of another kind than `allowed`. */
export function unsupportedType(req: Request, allowed: string): AtelierError {
  const type = req.get('content-type');
  const found = type === undefined ? 'nothing' : JSON.stringify(type.slice(0, 80));
  return new AtelierError('unsupported_media_type', `Content-Type: found ${found}, allowed is ${allowed}`);
}

function tooLarge(maxBytes: number): AtelierError {
  return new AtelierError('payload_too_large', `body: allowed are at most ${maxBytes} bytes`);
}
