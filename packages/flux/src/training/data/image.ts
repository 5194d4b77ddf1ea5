import { createHash } from 'node:crypto';
import sharp, { type Sharp } from 'sharp';
import type { Bucket } from './buckets.ts';

/** Guards the decoder's memory; a picture of 50 megapixels is 150 MB of RGB. */
export const MAX_PIXELS = 50_000_000;

/** The formats of pictures, as sharp names them; told from the content, whatever the file is called. */
const FORMATS: readonly (string | undefined)[] = Object.freeze(['png', 'jpeg', 'webp']);

/** What a check of a picture says of it. */
export interface InspectedImage {
  /** Pixels, upright. */
  readonly width: number;
  readonly height: number;
  /** SHA-256 of size and decoded pixels: equal for one picture in two files of other bytes. */
  readonly pixelHash: string;
}

/** The picture cannot be trained on; the message is the reason, to be put behind a file's name. */
export class ImageProblem extends Error {
  override readonly name = 'ImageProblem';
}

/**
 * Decodes the whole picture, so that one that is cut short is found before it is needed.
 * @throws ImageProblem
 */
export async function inspectImage(file: Uint8Array): Promise<InspectedImage> {
  const header = await readable(() => sharp(file, { limitInputPixels: false }).metadata());
  if (!FORMATS.includes(header.format))
    throw new ImageProblem(`is a picture of the format ${header.format}; allowed are PNG, JPEG and WebP`);
  if (header.width * header.height > MAX_PIXELS)
    throw new ImageProblem(
      `has ${header.width} x ${header.height} pixels; allowed are at most ${MAX_PIXELS}`,
    );
  const { data, info } = await readable(() => rgb8(decoder(file)).toBuffer({ resolveWithObject: true }));
  const hash = createHash('sha256').update(`${info.width} ${info.height} `).update(data);
  return { width: info.width, height: info.height, pixelHash: hash.digest('hex') };
}

/**
 * The picture as it is trained on: upright, over white where it is transparent, in sRGB, scaled with a bicubic kernel
 * until it covers the bucket, the excess cut off equally on both sides.
 * @returns RGB bytes [bucket.height, bucket.width, 3]
 * @throws ImageProblem
 */
export function fitImage(file: Uint8Array, bucket: Bucket): Promise<Uint8Array> {
  const fitted = decoder(file).resize(bucket.width, bucket.height, {
    fit: 'cover',
    position: 'centre',
    kernel: 'cubic',
    // The JPEG and WebP decoders would do a part of the reduction with kernels of their own.
    fastShrinkOnLoad: false,
  });
  return readable(() => rgb8(fitted).toBuffer());
}

function decoder(file: Uint8Array): Sharp {
  return sharp(file, { limitInputPixels: MAX_PIXELS, failOn: 'error' }).autoOrient();
}

/** 8 bits per sample, three samples per pixel, whatever the file has. */
function rgb8(image: Sharp): Sharp {
  return image.flatten({ background: '#ffffff' }).toColourspace('srgb').removeAlpha().raw({ depth: 'uchar' });
}

async function readable<T>(read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ImageProblem(`cannot be read as a picture: ${reason.split('\n', 1)[0]}`, { cause });
  }
}
