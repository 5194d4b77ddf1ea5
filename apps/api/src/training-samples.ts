import { AtelierError, trainingSampleKey } from '@atelier/shared';
import type { ObjectStore, TrainingCheckpointList, TrainingMetrics, TrainingRecord } from '@atelier/shared';
import type { Request, Response } from 'express';
import { sendObject } from './send-object.ts';

/** The same seed draws the same bytes, in whichever attempt. */
const FOR_EVER = 'private, max-age=31536000, immutable';

/**
 * The steps at which a training published a version or drew pictures, oldest first.
 * @param origin what absolute URLs start with, without a slash at the end
 */
export function checkpointsView(
  { id }: Pick<TrainingRecord, 'id'>,
  { checkpoints, samples, validation }: TrainingMetrics,
  origin: string,
): TrainingCheckpointList {
  const epochs = new Map([...samples, ...checkpoints].map(({ step, epoch }) => [step, epoch]));
  const steps = [...epochs].sort(([a], [b]) => a - b);
  return {
    data: steps.map(([step, epoch]) => ({
      epoch,
      step,
      lora: checkpoints.find((checkpoint) => checkpoint.step === step)?.lora ?? null,
      validation_loss: validation.find((measured) => measured.epoch === epoch)?.loss ?? null,
      samples: samples
        .filter((sample) => sample.step === step)
        .map(({ index, prompt, seed, width, height, sha256 }) => {
          const url = `${origin}/v1/trainings/${id}/samples/${step}/${index}`;
          return { prompt, seed, width, height, sha256, url };
        }),
    })),
  };
}

/**
 * Streams the picture that the path names by step and index; answers conditional and range requests.
 * @throws AtelierError not_found, range_not_satisfiable, store_unavailable
 */
export async function sendSample(
  store: ObjectStore,
  req: Request,
  res: Response,
  record: TrainingRecord,
  { samples }: TrainingMetrics,
): Promise<void> {
  const [step, index] = [String(req.params['step']), String(req.params['index'])];
  const sample = samples.find((known) => String(known.step) === step && String(known.index) === index);
  if (!sample) {
    const asked = JSON.stringify(`${step}/${index}`.slice(0, 40));
    const steps = [...new Set(samples.map((known) => known.step))].join(', ');
    const found = steps === '' ? 'has no samples' : `has samples of the steps ${steps}`;
    throw new AtelierError('not_found', `Training ${record.id} ${found}; asked for ${asked}`);
  }
  await sendObject(store, req, res, {
    key: trainingSampleKey(record, sample.step, sample.index),
    etag: `"${sample.sha256}"`,
    contentType: 'image/png',
    contentDisposition: `inline; filename="${record.id}-${step}-${index}.png"`,
    cacheControl: FOR_EVER,
    what: `The file of sample ${index} at step ${step} of training ${record.id}`,
  });
}
