import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { removeAbandoned } from '../../checkpoint/atomic-file.ts';
import { decodeFloat32, encodeFloat32 } from '../../checkpoint/dtypes.ts';
import { openSafetensors, readTensor, writeSafetensors } from '../../checkpoint/safetensors.ts';
import { FluxError } from '../../errors.ts';
import type { EncodedText } from '../../text/encoder.ts';
import type { Bucket } from './buckets.ts';
import type { LatentDistribution } from './encoders.ts';

/** Part of every key. To be raised when pictures are prepared or encoded in another way. */
const VERSION = 1;
/** Longer than the writing of any file takes. */
const ABANDONED_MS = 60 * 60 * 1000;

interface Values {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/**
 * What the encoders of a model make of pictures and captions, on disk: a safetensors file for each, named by the hash
 * of what it was made from. Several trainings may share the folder; anything in it may be deleted at any time.
 */
export class EncodingCache {
  readonly #folder: string;
  readonly #modelKey: string;

  private constructor(folder: string, modelKey: string) {
    this.#folder = folder;
    this.#modelKey = modelKey;
  }

  /**
   * @param modelKey tells apart everything that encodings depend on: the weights of autoencoder and text encoders,
   *   the tokenizers, the length that T5's tokens are padded to, the provider where its numbers differ
   */
  static async open(folder: string, modelKey: string): Promise<EncodingCache> {
    await mkdir(folder, { recursive: true });
    await removeAbandoned(folder, ABANDONED_MS);
    return new EncodingCache(folder, modelKey);
  }

  /** The latents of the picture file with the given hash, fitted to a bucket. */
  async latents(
    sha256: string,
    bucket: Bucket,
    encode: () => Promise<LatentDistribution>,
  ): Promise<LatentDistribution> {
    const path = this.#path('latents', [sha256, bucket.width, bucket.height]);
    const { mean, log_variance: logVariance } = await cached(path, ['mean', 'log_variance'], async () => {
      const { latent, mean: means, logVariance: logarithms } = await encode();
      const shape = [latent.channels, latent.height, latent.width];
      return { mean: { shape, values: means }, log_variance: { shape, values: logarithms } };
    });
    const [channels, height, width] = mean.shape as [number, number, number];
    return { latent: { channels, height, width }, mean: mean.values, logVariance: logVariance.values };
  }

  /** The embeddings of a caption. */
  async text(caption: string, encode: () => Promise<EncodedText>): Promise<EncodedText> {
    const { text, pooled } = await cached(this.#path('text', [caption]), ['text', 'pooled'], async () => {
      const encoded = await encode();
      return {
        text: { shape: [encoded.text.length], values: encoded.text },
        pooled: { shape: [encoded.pooled.length], values: encoded.pooled },
      };
    });
    return { text: text.values, pooled: pooled.values };
  }

  #path(kind: string, made: readonly (string | number)[]): string {
    const hash = createHash('sha256').update(JSON.stringify([VERSION, this.#modelKey, kind, ...made]));
    return join(this.#folder, `${kind}-${hash.digest('hex')}.safetensors`);
  }
}

/** The named tensors of a file, made and written when there is no such file or it is damaged. */
async function cached<Name extends string>(
  path: string,
  names: readonly Name[],
  make: () => Promise<Record<Name, Values>>,
): Promise<Record<Name, Values>> {
  const found = await readValues(path, names);
  if (found) return found;
  const made = await make();
  const entries = names.map((name) => ({
    name,
    dtype: 'F32' as const,
    shape: made[name].shape,
    data: encodeFloat32('F32', made[name].values),
  }));
  await writeSafetensors(path, entries);
  return made;
}

async function readValues<Name extends string>(
  path: string,
  names: readonly Name[],
): Promise<Record<Name, Values> | null> {
  try {
    const { tensors } = await openSafetensors(path);
    const found = await Promise.all(
      names.map(async (name): Promise<[Name, Values] | null> => {
        const info = tensors.get(name);
        if (info?.dtype !== 'F32') return null;
        return [name, { shape: info.shape, values: decodeFloat32('F32', await readTensor(info)) }];
      }),
    );
    if (found.includes(null)) return null;
    return Object.fromEntries(found as [Name, Values][]) as Record<Name, Values>;
  } catch (error) {
    // Absent, or cut short by whatever else happens on disks: made again either way.
    if (error instanceof FluxError) return null;
    throw error;
  }
}
