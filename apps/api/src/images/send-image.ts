import { pipeline } from 'node:stream/promises';
import { AtelierError, type GenerationRecord, type ObjectStore, type StoredImage } from '@atelier/shared';
import type { Request, Response } from 'express';

/** The bytes under a URL never change: an image is published once. */
const FOR_EVER = 'private, max-age=31536000, immutable';

/**
 * Streams an image of a job from the object store; answers conditional and range requests (RFC 9110).
 *
 * @param index position in the job's output, as in the URL
 * @throws AtelierError not_found, range_not_satisfiable, store_unavailable
 */
export async function sendImage(
  store: ObjectStore,
  req: Request,
  res: Response,
  record: GenerationRecord,
  index: string,
): Promise<void> {
  const image = findImage(record, index);
  const etag = `"${image.sha256}"`;
  if (matches(req.get('if-none-match'), etag)) {
    res.status(304).set({ ETag: etag, 'Cache-Control': FOR_EVER }).end();
    return;
  }
  const info = await store.head(image.key);
  if (!info) throw await missing(store, record, index);
  const range = wantedRange(req, info.size, etag);

  const headers = {
    ETag: etag,
    'Cache-Control': FOR_EVER,
    'Accept-Ranges': 'bytes',
    'Content-Type': image.content_type,
    'Content-Disposition': `inline; filename="${record.id}-${index}.${image.content_type.replace('image/', '')}"`,
    'Content-Length': String(range ? range.end - range.start + 1 : info.size),
    ...(range ? { 'Content-Range': `bytes ${range.start}-${range.end}/${info.size}` } : {}),
  };
  if (req.method === 'HEAD') {
    res.status(200).set(headers).end();
    return;
  }
  const object = await store.get(image.key, range ? { range } : {});
  if (!object) throw await missing(store, record, index);
  res.status(range ? 206 : 200).set(headers);
  try {
    await pipeline(object.body, res);
  } catch (error) {
    // A client that leaves early is no failure; a store that fails midway has already broken the connection.
    if (!req.destroyed && !res.destroyed) throw error;
  }
}

/** The record promises the file: before a client is told that it is gone, the store must show that it is there. */
async function missing(store: ObjectStore, record: GenerationRecord, index: string): Promise<AtelierError> {
  await store.ping();
  return new AtelierError('not_found', `The file of image ${index} of generation ${record.id} is gone`);
}

function findImage(record: GenerationRecord, index: string): StoredImage {
  const images = record.output?.images ?? [];
  const image = /^\d{1,3}$/.test(index) ? images[Number(index)] : undefined;
  if (image) return image;
  const found =
    images.length === 0 ? `is ${record.status} and has no images` : `has images 0 to ${images.length - 1}`;
  throw new AtelierError(
    'not_found',
    `Generation ${record.id} ${found}; asked for ${JSON.stringify(index.slice(0, 20))}`,
  );
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
