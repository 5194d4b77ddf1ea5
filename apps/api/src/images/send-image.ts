import { AtelierError, type GenerationRecord, type ObjectStore, type StoredImage } from '@atelier/shared';
import type { Request, Response } from 'express';
import { sendObject } from '../send-object.ts';

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
  const extension = image.content_type.replace('image/', '');
  await sendObject(store, req, res, {
    key: image.key,
    etag: `"${image.sha256}"`,
    contentType: image.content_type,
    contentDisposition: `inline; filename="${record.id}-${index}.${extension}"`,
    cacheControl: FOR_EVER,
    what: `The file of image ${index} of generation ${record.id}`,
  });
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
