import type { GenerationInput } from '../contracts/generation.ts';
import type { JobError, JobStatus, Progress, StoredImage, Timings } from '../contracts/job.ts';
import type { TrainingInput } from '../contracts/training.ts';
import type { WebhookRequest } from '../contracts/webhook.ts';

/** The tenant of an installation without API keys. */
export const DEFAULT_TENANT = 'default';

/** The two names that find a job: a tenant sees only its own. */
export interface JobRef {
  tenant: string;
  id: string;
}

/** What a job made: a generation images, a training a version of a LoRA. */
export interface JobOutput {
  images: StoredImage[];
  /** Of a training: `name@version`. */
  lora?: string;
}

/** Who is told what becomes of a job. */
export interface JobWebhook extends WebhookRequest {
  /** What URLs in the payload start with, as the client that submitted the job reached the API. */
  origin: string;
}

interface JobFields extends JobRef {
  status: JobStatus;
  progress: Progress;
  /** Written once, by the attempt that published. */
  output: JobOutput | null;
  error: JobError | null;
  timings: Timings | null;
  /** Attempts that were started and not given back. */
  attempts: number;
  /** Token of the attempt that may write to this record; null when none runs. */
  attempt: string | null;
  /** Id of the worker that runs or ran the latest attempt. */
  worker: string | null;
  metadata: Record<string, string>;
  webhook: JobWebhook | null;
  /** ISO 8601, UTC. */
  created_at: string;
  /** Start of the latest attempt. */
  started_at: string | null;
  finished_at: string | null;
  /** Set when a client asked a running job to stop. */
  cancel_requested_at: string | null;
}

export interface GenerationRecord extends JobFields {
  kind: 'generation';
  input: GenerationInput;
}

export interface TrainingRecord extends JobFields {
  kind: 'training';
  input: TrainingInput;
}

/** A job as stored: the truth that the API shows. The queue only knows that there is something to do. */
export type JobRecord = GenerationRecord | TrainingRecord;

export type NewJob =
  | {
      kind: 'generation';
      tenant?: string;
      id?: string;
      input: GenerationInput;
      metadata?: Record<string, string>;
      webhook?: JobWebhook | null;
    }
  | {
      kind: 'training';
      tenant?: string;
      id?: string;
      input: TrainingInput;
      metadata?: Record<string, string>;
      webhook?: JobWebhook | null;
    };

/** One try at a job; the token decides who may write to the record. */
export interface Attempt extends JobRef {
  token: string;
}

/**
 * `done`: the record was changed. `refused`: it was not, because the job is in another state or another attempt
 * has taken over. `record` is what is there now. `missing`: no such job.
 */
export type Outcome = { result: 'done' | 'refused'; record: JobRecord } | { result: 'missing'; record: null };

/** Sent to whoever watches a job, after the record was written. */
export interface JobEvent {
  id: string;
  type: 'status' | 'progress';
  status: JobStatus;
  progress: Progress;
}

export const TERMINAL_STATUSES = ['succeeded', 'failed', 'canceled'] as const satisfies readonly JobStatus[];

export function isTerminal(status: JobStatus): boolean {
  return (TERMINAL_STATUSES as readonly JobStatus[]).includes(status);
}
