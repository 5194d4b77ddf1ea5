import {
  AtelierError,
  type JobKind,
  type JobRecord,
  type JobRef,
  type JobStore,
  jobKindOf,
} from '@atelier/shared';

export type RecordOf<Kind extends JobKind> = Extract<JobRecord, { kind: Kind }>;

export function isOf<Kind extends JobKind>(record: JobRecord, kind: Kind): record is RecordOf<Kind> {
  return record.kind === kind;
}

/** The record as that of a kind. @throws AtelierError not_found for none and for a job of another kind */
export function asJob<Kind extends JobKind>(
  record: JobRecord | null,
  kind: Kind,
  id: string,
): RecordOf<Kind> {
  if (record && isOf(record, kind)) return record;
  throw new AtelierError('not_found', `No ${kind} has the id ${id.slice(0, 64)}`);
}

/** Reads a job of a tenant. @throws AtelierError not_found, queue_unavailable */
export async function readJob<Kind extends JobKind>(
  jobs: Pick<JobStore, 'get'>,
  kind: Kind,
  ref: JobRef,
): Promise<RecordOf<Kind>> {
  // What is not an id of the kind is not looked up either.
  return asJob(jobKindOf(ref.id) === kind ? await jobs.get(ref) : null, kind, ref.id);
}
