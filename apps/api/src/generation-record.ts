import {
  AtelierError,
  type GenerationRecord,
  type JobRecord,
  type JobRef,
  type JobStore,
  jobKindOf,
} from '@atelier/shared';

/** The record as that of a generation. @throws AtelierError not_found for none and for a job of another kind */
export function asGeneration(record: JobRecord | null, id: string): GenerationRecord {
  if (record?.kind === 'generation') return record;
  throw new AtelierError('not_found', `No generation has the id ${id.slice(0, 64)}`);
}

/** Reads a generation of a tenant. @throws AtelierError not_found, queue_unavailable */
export async function readGeneration(jobs: Pick<JobStore, 'get'>, ref: JobRef): Promise<GenerationRecord> {
  // What is not an id of a generation is not looked up either.
  return asGeneration(jobKindOf(ref.id) === 'generation' ? await jobs.get(ref) : null, ref.id);
}
