import type { Catalog } from './catalog.ts';
import { MAX_DEFAULT_RESOLUTION, type TrainingInput, type TrainingRequest } from './contracts/training.ts';
import type { JobRef } from './jobs/record.ts';

/** Prefix of all objects of one training. */
export const trainingPrefix = ({ tenant, id }: JobRef): string => `tenants/${tenant}/trainings/${id}/`;

/** What was measured, as TrainingMetrics. */
export const trainingMetricsKey = (ref: JobRef): string => `${trainingPrefix(ref)}metrics.json`;

/** Names the checkpoint that the next attempt goes on from; written after its files. */
export const trainingResumeKey = (ref: JobRef): string => `${trainingPrefix(ref)}resume.json`;

/** A file of a checkpoint. The keys are the same for every attempt: a training gives the same bytes each time. */
export const trainingCheckpointKey = (ref: JobRef, folder: string, file: string): string =>
  `${trainingPrefix(ref)}checkpoints/${folder}/${file}`;

/** A picture drawn at a checkpoint, as PNG. */
export const trainingSampleKey = (ref: JobRef, step: number, index: number): string =>
  `${trainingPrefix(ref)}samples/${String(step).padStart(6, '0')}/${index}.png`;

/**
 * What a trainer will execute: the model's own resolution for an absent one.
 * @throws AtelierError `unknown_model`
 */
export function resolveTraining(request: TrainingRequest, catalog: Catalog): TrainingInput {
  const { metadata: _, webhook: _webhook, ...asked } = request;
  const model = request.model === undefined ? catalog.default : catalog.get(request.model);
  const { resolution = Math.min(model.defaults.width, MAX_DEFAULT_RESOLUTION) } = request;
  return { ...asked, model: model.name, resolution };
}
