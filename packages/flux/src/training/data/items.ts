import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import type { EncodedText } from '../../text/encoder.ts';
import type { TrainingItem } from '../trainer.ts';
import { aspectBuckets, type Bucket, nearestBucket } from './buckets.ts';
import { EncodingCache } from './cache.ts';
import { throwIfCanceled } from './canceled.ts';
import type { DatasetEncoders, LatentDistribution } from './encoders.ts';
import { type DatasetPair, readDataset } from './folder.ts';
import { fitImage, ImageProblem } from './image.ts';
import { datasetInvalid, type DatasetProblem } from './problems.ts';

/** An item of a training and where it came from. */
export interface DatasetItem extends TrainingItem {
  readonly stem: string;
  /** With the trigger word. */
  readonly caption: string;
  readonly bucket: Bucket;
}

export interface PreparedDataset {
  /** Captions that are equal share their embeddings. */
  readonly items: DatasetItem[];
  /** Those held back from training. */
  readonly validation: DatasetItem[];
  /** Embeddings of the empty caption, for caption dropout; a dropped caption takes the trigger word with it. */
  readonly empty: EncodedText;
  /** Why files were skipped; empty unless `skipBad`. */
  readonly skipped: DatasetProblem[];
}

export interface PrepareProgress {
  readonly phase: 'check' | 'images' | 'captions';
  readonly done: number;
  readonly total: number;
}

export interface PrepareOptions {
  /** Side of the square whose area pictures are trained at, in pixels; a multiple of `multiple`. */
  readonly resolution: number;
  /** Of the sides of pictures: the autoencoder's factor times the transformer's patch. */
  readonly multiple: number;
  /** Crop every picture to a square instead of giving it a bucket of about its own ratio. */
  readonly squareCrop?: boolean;
  /** Put in front of the captions that do not contain it. */
  readonly triggerWord?: string;
  /** Train on what is good instead of refusing a dataset with a problem. */
  readonly skipBad?: boolean;
  /** Hold back every k-th picture, from the k-th on in natural order of the names; at least 2. None when absent. */
  readonly validationEvery?: number;
  readonly cacheDir: string;
  /** See {@link EncodingCache.open}. */
  readonly modelKey: string;
  readonly encoders: DatasetEncoders;
  readonly onProgress?: (progress: PrepareProgress) => void;
  readonly signal?: AbortSignal;
}

/**
 * Checks a dataset's folder as {@link readDataset} does, then encodes its pictures and captions, each distinct one
 * once; what an earlier call has encoded with the same cache is read from there.
 *
 * @throws FluxError `dataset_invalid`, `request_invalid`, `canceled`, and what the encoders throw
 */
export async function prepareItems(folder: string, options: PrepareOptions): Promise<PreparedDataset> {
  const { encoders, signal, validationEvery } = options;
  if (validationEvery !== undefined && !(Number.isSafeInteger(validationEvery) && validationEvery >= 2))
    throw new RangeError(`validationEvery: found ${validationEvery}, allowed are whole numbers from 2`);
  const report = (phase: PrepareProgress['phase'], done: number, total: number): void =>
    options.onProgress?.({ phase, done, total });
  const buckets = aspectBuckets(options.resolution, options.multiple, options.squareCrop);
  const { pairs, problems } = await readDataset(folder, {
    resolution: options.resolution,
    ...(options.skipBad !== undefined && { skipBad: options.skipBad }),
    ...(signal && { signal }),
    onProgress: (done, total) => report('check', done, total),
  });
  const cache = await EncodingCache.open(options.cacheDir, options.modelKey);

  const latents: (LatentDistribution & { bucket: Bucket })[] = [];
  for (const pair of pairs) {
    throwIfCanceled(signal);
    const bucket = nearestBucket(buckets, pair);
    const encoded = await cache.latents(pair.sha256, bucket, async () => {
      const pixels = await fittedPixels(pair, bucket);
      return encoders.encodeImage(pixels, bucket.width, bucket.height);
    });
    latents.push({ ...encoded, bucket });
    report('images', latents.length, pairs.length);
  }

  const captions = pairs.map(({ caption }) => withTrigger(caption, options.triggerWord));
  const distinct = new Set(['', ...captions]);
  const texts = new Map<string, EncodedText>();
  for (const caption of distinct) {
    throwIfCanceled(signal);
    texts.set(caption, await cache.text(caption, () => encoders.encodeText(caption)));
    report('captions', texts.size, distinct.size);
  }

  const all = pairs.map(({ stem }, i): DatasetItem => {
    const caption = captions[i]!;
    return { stem, caption, ...latents[i]!, ...texts.get(caption)! };
  });
  const isHeldBack = (_: DatasetItem, i: number): boolean =>
    validationEvery !== undefined && (i + 1) % validationEvery === 0;
  return {
    items: all.filter((item, i) => !isHeldBack(item, i)),
    validation: all.filter(isHeldBack),
    empty: texts.get('')!,
    skipped: problems,
  };
}

/** The caption with the trigger word in front, unless it has it as a word of its own, in whatever case. */
export function withTrigger(caption: string, trigger = ''): string {
  const word = trigger.trim();
  if (word === '') return caption;
  const literal = word.replaceAll(/[\\^$.*+?()[\]{}|]/g, String.raw`\$&`);
  const isContained = new RegExp(String.raw`(?<![\p{L}\p{N}_])${literal}(?![\p{L}\p{N}_])`, 'iu').test(
    caption,
  );
  return isContained ? caption : `${word}, ${caption}`;
}

/** The pixels of a picture that was checked; under its hash nothing else may get into the cache. */
async function fittedPixels(pair: DatasetPair, bucket: Bucket): Promise<Uint8Array> {
  const problem = (text: string): Error =>
    datasetInvalid([{ file: `images/${basename(pair.image)}`, problem: text }]);
  const file = await readFile(pair.image).catch((cause: NodeJS.ErrnoException) => {
    throw problem(`cannot be read (${cause.code})`);
  });
  if (createHash('sha256').update(file).digest('hex') !== pair.sha256)
    throw problem('was changed while the dataset was read');
  try {
    return await fitImage(file, bucket);
  } catch (error) {
    throw error instanceof ImageProblem ? problem(error.message) : error;
  }
}
