import { AtelierError } from '@atelier/shared';
import { type ImageHeader, readImageHeader } from './header.ts';

/** Bytes of the decoded file. */
export const MAX_IMAGE_BYTES = 16 * 2 ** 20;
/** Width times height. */
export const MAX_IMAGE_PIXELS = 50_000_000;

const FIELD = 'image.file';
const PREFIX = /^data:(image\/(?:png|jpeg|webp));base64,/;

export interface InitImageFile extends ImageHeader {
  bytes: Buffer;
}

/**
 * The picture inside a data URI. Only its header is read here; the worker decodes it and has the last word.
 *
 * @throws AtelierError image_invalid, or payload_too_large: what was found, what is allowed
 */
export function parseInitImage(uri: string): InitImageFile {
  const prefix = PREFIX.exec(uri.slice(0, 64));
  if (!prefix) {
    const found = uri.startsWith('data:') ? uri.slice(0, 40).split(',', 1)[0]! : `${uri.slice(0, 24)}...`;
    throw refused(
      `found ${JSON.stringify(found)}, allowed is a data URI: data:image/png;base64,..., or image/jpeg or image/webp`,
    );
  }
  const base64 = uri.slice(prefix[0].length);
  if (base64.length > Math.ceil(MAX_IMAGE_BYTES / 3) * 4) {
    const found = Math.floor((base64.length * 3) / 4);
    throw refused(`found about ${found} bytes, allowed are at most ${MAX_IMAGE_BYTES}`, 'payload_too_large');
  }
  // Buffer.from skips what is not base64 instead of refusing it.
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(base64)) throw refused('found text that is not base64');
  const bytes = Buffer.from(base64, 'base64');
  const header = readImageHeader(bytes);
  if (!header) throw refused('the bytes are not a PNG, JPEG or WebP picture');
  if (header.contentType !== prefix[1]) {
    throw refused(`the URI says ${prefix[1]}, the bytes are ${header.contentType}`);
  }
  if (header.width * header.height > MAX_IMAGE_PIXELS) {
    throw refused(`found ${header.width} x ${header.height} pixels, allowed are at most ${MAX_IMAGE_PIXELS}`);
  }
  return { ...header, bytes };
}

function refused(
  message: string,
  code: 'image_invalid' | 'payload_too_large' = 'image_invalid',
): AtelierError {
  return new AtelierError(code, `${FIELD}: ${message}`, { errors: [{ field: FIELD, message }] });
}
