import { pipeline } from 'node:stream/promises';
import { AtelierError, type ObjectStore } from '@atelier/shared';
import type { Request, Response } from 'express';

export interface SentObject {
  key: string;
  /** With quotes; of the bytes, whichever key they are under. */
  etag: string;
  contentType: string;
  contentDisposition: string;
  cacheControl: string;
  /** What is missing when the object is, for the message. */
  what: string;
}

/**
 * Streams an object; answers conditional and range requests (RFC 9110).
 * @throws AtelierError not_found, range_not_satisfiable, store_unavailable
 */
export async function sendObject(
  store: ObjectStore,
  req: Request,
  res: Response,
  { key, etag, contentType, contentDisposition, cacheControl, what }: SentObject,
): Promise<void> {
  if (matches(req.get('if-none-match'), etag)) {
    res.status(304).set({ ETag: etag, 'Cache-Control': cacheControl }).end();
    return;
  }
  const info = await store.head(key);
  if (!info) throw await missing(store, what);
  const range = wantedRange(req, info.size, etag);

  const headers = {
    ETag: etag,
    'Cache-Control': cacheControl,
    'Accept-Ranges': 'bytes',
    'Content-Type': contentType,
    'Content-Disposition': contentDisposition,
    'Content-Length': String(range ? range.end - range.start + 1 : info.size),
    ...(range ? { 'Content-Range': `bytes ${range.start}-${range.end}/${info.size}` } : {}),
  };
  if (req.method === 'HEAD') {
    res.status(200).set(headers).end();
    return;
  }
  const object = await store.get(key, range ? { range } : {});
  if (!object) throw await missing(store, what);
  res.status(range ? 206 : 200).set(headers);
  try {
    await pipeline(object.body, res);
  } catch (error) {
    // A client that leaves early is no failure; a store that fails midway has already broken the connection.
    if (!req.destroyed && !res.destroyed) throw error;
  }
}

/** A record promises the object: before a client is told that it is gone, the store must show that it is there. */
async function missing(store: ObjectStore, what: string): Promise<AtelierError> {
  await store.ping();
  return new AtelierError('not_found', `${what} is gone`);
}

function matches(ifNoneMatch: string | undefined, etag: string): boolean {
  const tags = (ifNoneMatch ?? '').split(',').map((tag) => tag.trim().replace(/^W\//, ''));
  return tags.includes(etag) || tags.includes('*');
}

/** The one range to send; null for the whole, which is also right for several ranges or a changed file. */
function wantedRange(req: Request, size: number, etag: string): { start: number; end: number } | null {
  if (req.method !== 'GET') return null;
  const ifRange = req.get('if-range');
  if (ifRange !== undefined && ifRange !== etag) return null;
  const ranges = req.range(size, { combine: true });
  if (ranges === -1) {
    throw new AtelierError(
      'range_not_satisfiable',
      `Range: found ${req.get('range')}, allowed are bytes 0 to ${size - 1}`,
    );
  }
  if (!Array.isArray(ranges) || ranges.type !== 'bytes' || ranges.length !== 1) return null;
  return ranges[0]!;
}
