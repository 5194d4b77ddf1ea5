import { z } from 'zod';
import { GenerationInputView } from './generation.ts';
import { WebhookView } from './webhook.ts';

export const JOB_STATUSES = ['queued', 'running', 'succeeded', 'failed', 'canceled'] as const;
export const JobStatus = z.enum(JOB_STATUSES).meta({ id: 'JobStatus' });
export type JobStatus = z.infer<typeof JobStatus>;

export const JOB_KINDS = ['generation', 'training'] as const;
export const JobKind = z.enum(JOB_KINDS);
export type JobKind = z.infer<typeof JobKind>;

export const JobError = z
  .strictObject({ code: z.string(), message: z.string(), retryable: z.boolean() })
  .meta({ id: 'JobError' });
export type JobError = z.infer<typeof JobError>;

export const Progress = z
  .strictObject({
    step: z.int().meta({ description: 'Finished denoising steps over all images of the job' }),
    steps: z.int(),
    fraction: z.number().min(0).max(1),
    eta_s: z.number().nullable(),
  })
  .meta({ id: 'Progress' });
export type Progress = z.infer<typeof Progress>;

/** An image as stored: `key` is its place in the object store; the API turns it into a `url`. */
export interface StoredImage {
  key: string;
  width: number;
  height: number;
  seed: number;
  sha256: string;
  content_type: string;
}

export const OutputImage = z
  .strictObject({
    url: z.url(),
    width: z.int(),
    height: z.int(),
    seed: z.int(),
    sha256: z.string(),
    content_type: z.string(),
  })
  .meta({ id: 'OutputImage' });

/** Milliseconds, measured by the worker for the attempt that succeeded. */
export const Timings = z
  .strictObject({
    queue_ms: z.number().meta({ description: 'From acceptance to the start of this attempt' }),
    load_ms: z.number().meta({ description: 'Model load, 0 when it was resident' }),
    style_ms: z
      .number()
      .meta({ description: 'Fetching the LoRAs and applying them, 0 when they were in place' }),
    text_ms: z.number(),
    denoise_ms: z.number(),
    decode_ms: z.number(),
    encode_ms: z.number().meta({ description: 'Pixels to PNG, JPEG or WebP' }),
    upload_ms: z.number(),
    overhead_ms: z
      .number()
      .meta({ description: 'Part of total_ms that neither engine, model load nor styles took' }),
    total_ms: z.number().meta({ description: 'From the start of this attempt to its publication' }),
  })
  .partial()
  .meta({ id: 'Timings' });
export type Timings = z.infer<typeof Timings>;

/** The job as clients see it. */
export const GenerationJob = z
  .strictObject({
    id: z.string(),
    kind: z.literal('generation'),
    status: JobStatus,
    progress: Progress,
    queue: z.strictObject({
      position: z
        .int()
        .nullable()
        .meta({ description: 'Jobs that start before this one; null when it is not waiting' }),
      eta_s: z.number().nullable(),
    }),
    input: GenerationInputView,
    output: z.strictObject({ images: z.array(OutputImage) }).nullable(),
    error: JobError.nullable(),
    timings: Timings.nullable(),
    attempts: z.int(),
    webhook: WebhookView.nullable(),
    metadata: z.record(z.string(), z.string()),
    created_at: z.iso.datetime(),
    started_at: z.iso.datetime().nullable(),
    finished_at: z.iso.datetime().nullable(),
  })
  .meta({ id: 'GenerationJob' });
export type GenerationJob = z.infer<typeof GenerationJob>;
