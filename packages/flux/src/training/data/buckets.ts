import { FluxError } from '../../errors.ts';

/** A size that pictures are trained at, in pixels. */
export interface Bucket {
  readonly width: number;
  readonly height: number;
}

/** The longest picture that is not cropped to be shorter, as long side over short side. */
const MAX_RATIO = 2;
/** How far the area of a bucket may be from that of the square, so that every sample costs about the same. */
const AREA_TOLERANCE = 0.1;

/**
 * The sizes that pictures are trained at: sides are multiples of `multiple` (of a FLUX model: the autoencoder's factor
 * times the transformer's patch), areas within 10 % of resolution x resolution, ratios of the sides from 1:2 to 2:1;
 * from the tallest to the widest, the square among them.
 *
 * @param squareCrop the square alone
 * @throws FluxError `request_invalid` when the resolution is no multiple of `multiple`
 */
export function aspectBuckets(resolution: number, multiple: number, squareCrop = false): readonly Bucket[] {
  if (!Number.isSafeInteger(resolution) || resolution < multiple || resolution % multiple !== 0)
    throw new FluxError(
      'request_invalid',
      `resolution: found ${resolution}, allowed are multiples of ${multiple}`,
      { details: { found: resolution, multiple } },
    );
  const square = Object.freeze({ width: resolution, height: resolution });
  if (squareCrop) return Object.freeze([square]);
  const side = resolution / multiple;
  const area = side * side;
  const portraits: Bucket[] = [];
  for (let short = 1; short < side; short++) {
    const long = Math.min(Math.round(area / short), MAX_RATIO * short);
    if (Math.abs(short * long - area) > AREA_TOLERANCE * area) continue;
    portraits.push(Object.freeze({ width: short * multiple, height: long * multiple }));
  }
  const landscapes = portraits
    .map(({ width, height }) => Object.freeze({ width: height, height: width }))
    .toReversed();
  return Object.freeze([...portraits, square, ...landscapes]);
}

/** The bucket whose ratio of sides is nearest to that of the picture, on the logarithmic scale. */
export function nearestBucket(buckets: readonly Bucket[], size: Bucket): Bucket {
  const ratio = Math.log(size.width / size.height);
  const distance = (bucket: Bucket): number => Math.abs(Math.log(bucket.width / bucket.height) - ratio);
  return buckets.reduce((best, bucket) => (distance(bucket) < distance(best) ? bucket : best));
}
