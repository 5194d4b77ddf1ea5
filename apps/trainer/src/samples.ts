import { createHash } from 'node:crypto';
import { type JobRef, type ObjectStore, type TrainingMetrics, trainingSampleKey } from '@atelier/shared';
import sharp from 'sharp';
import type { TrainEvent } from './engine.ts';

export type SampleEvent = TrainEvent & { type: 'sample' };

export type StoredSample = TrainingMetrics['samples'][number];

/**
 * Stores a picture as PNG; the key is the same for every attempt.
 * @returns what the metrics list of it
 */
export async function saveSample(store: ObjectStore, ref: JobRef, event: SampleEvent): Promise<StoredSample> {
  const { epoch, step, index, prompt, seed, width, height, pixels } = event;
  const file = await sharp(pixels, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer();
  await store.put(trainingSampleKey(ref, step, index), file, { contentType: 'image/png' });
  const sha256 = createHash('sha256').update(file).digest('hex');
  return { epoch, step, index, prompt, seed, width, height, sha256 };
}
