import type { JobError, JobKind, Progress, StoredImage, Timings } from '../contracts/job.ts';
import type { JobEvent, JobRecord, JobRef, NewJob } from './record.ts';

/** Of one attempt: who may write. */
export interface Attempt extends JobRef {
  token: string;
}

/**
 * `done`: the record was changed. `refused`: it was not, because the job is in another state or another attempt
 * has taken over; `record` is what is there now. `missing`: no such job.
 */
export type Outcome = { result: 'done' | 'refused'; record: JobRecord } | { result: 'missing'; record: null };

export declare class JobStore {
  create(job: NewJob): Promise<JobRecord>;
  /** null when the tenant has no such job. */
  get(ref: JobRef): Promise<JobRecord | null>;
  /** Newest first; `cursor` from the page before. */
  list(
    tenant: string,
    kind: JobKind,
    options?: { cursor?: string; limit?: number },
  ): Promise<{ records: JobRecord[]; cursor: string | null }>;
  /** queued -> running. The record comes back `canceled` when a cancel request was waiting. */
  start(attempt: Attempt, worker: string): Promise<Outcome>;
  progress(attempt: Attempt, progress: Progress): Promise<Outcome>;
  publish(attempt: Attempt, images: StoredImage[], timings: Timings): Promise<Outcome>;
  /** Ends the job as failed; without a token only while it is queued. */
  fail(attempt: JobRef & { token?: string }, error: JobError): Promise<Outcome>;
  /** running -> queued after a failed attempt. */
  retry(attempt: Attempt): Promise<Outcome>;
  /** running -> queued without spending an attempt. */
  giveBack(attempt: Attempt): Promise<Outcome>;
  /** A queued job is canceled at once; a running one is marked and its worker told. */
  requestCancel(ref: JobRef): Promise<Outcome>;
  /** running -> canceled, by the worker that obeyed. */
  cancel(attempt: Attempt): Promise<Outcome>;
  /** The record as soon as it is terminal, or as it is after `ms` (or when `signal` aborts); never cancels. */
  wait(ref: JobRef, ms: number, signal?: AbortSignal): Promise<JobRecord | null>;
  /** Calls back for each event of a job until the returned function is called. */
  subscribe(ref: JobRef, listener: (event: JobEvent) => void): Promise<() => Promise<void>>;
  /** Calls back for each cancel request in the installation. */
  onCancelRequest(listener: (ref: JobRef) => void): Promise<() => Promise<void>>;
  close(): Promise<void>;
}
