import { type GenerationJob, type TrainingJob, jobKindOf } from '@atelier/shared';
import { CliError } from '../errors.ts';

export type Job = GenerationJob | TrainingJob;

/** The path of a job of either kind. @throws CliError `invalid_id` */
export function jobPath(id: string): string {
  const kind = jobKindOf(id);
  if (!kind) {
    const allowed = 'allowed is an id of "atelier jobs": gen_… of a generation, trn_… of a training';
    throw new CliError('invalid_id', `"${id}" names no job; ${allowed}`);
  }
  return `/v1/${kind}s/${id}`;
}
