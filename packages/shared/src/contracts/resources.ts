import { z } from 'zod';
import { GenerationJob, JOB_KINDS, JobStatus } from './job.ts';

/** Query of GET /v1/generations. */
export const ListQuery = z.strictObject({
  status: JobStatus.optional().meta({ description: 'Only jobs in this status' }),
  limit: z.coerce.number().int().min(1).max(100).default(20),
  cursor: z.string().min(1).max(128).optional().meta({ description: '`next_cursor` of the page before' }),
});
export type ListQuery = z.infer<typeof ListQuery>;

export const GenerationList = z
  .strictObject({
    data: z.array(GenerationJob).meta({ description: 'Newest first' }),
    next_cursor: z.string().nullable().meta({
      description: 'null on the last page; a page with a cursor may hold fewer jobs than asked for',
    }),
  })
  .meta({ id: 'GenerationList' });
export type GenerationList = z.infer<typeof GenerationList>;

/** Data of the SSE event `progress`; the event `status` carries the whole job. */
export const ProgressEvent = z
  .strictObject({ id: z.string(), status: JobStatus, progress: GenerationJob.shape.progress })
  .meta({ id: 'ProgressEvent' });
export type ProgressEvent = z.infer<typeof ProgressEvent>;

export const ModelView = z
  .strictObject({
    name: z.string(),
    title: z.string(),
    family: z.string(),
    license: z.string(),
    default: z.boolean().meta({ description: 'Used when a request names no model' }),
    defaults: z.strictObject({
      width: z.int(),
      height: z.int(),
      steps: z.int(),
      guidance: z.number(),
      max_sequence_length: z.int(),
    }),
  })
  .meta({ id: 'Model' });
export type ModelView = z.infer<typeof ModelView>;
export const ModelList = z.strictObject({ data: z.array(ModelView) }).meta({ id: 'ModelList' });
export type ModelList = z.infer<typeof ModelList>;

export const WorkerView = z
  .strictObject({
    id: z.string(),
    kind: z.enum(JOB_KINDS),
    models: z.array(z.string()).meta({ description: 'Models that it can run, the resident one first' }),
    provider: z
      .string()
      .nullable()
      .meta({ description: 'cuda, webgpu or cpu; null until a model was loaded' }),
    device: z.string().nullable().meta({ description: 'Name of the device; null for the processor' }),
    device_reason: z.string().nullable().meta({ description: 'Why the engine computes there' }),
    host: z.string(),
    current_job: z.string().nullable().meta({
      description: 'null while it waits; without the scope `admin` for a job of another tenant too',
    }),
    started_at: z.iso.datetime(),
  })
  .meta({ id: 'Worker' });
export type WorkerView = z.infer<typeof WorkerView>;
export const WorkerList = z.strictObject({ data: z.array(WorkerView) }).meta({ id: 'WorkerList' });
export type WorkerList = z.infer<typeof WorkerList>;

export const QueueView = z
  .strictObject({
    waiting: z.int().meta({ description: 'Accepted and not started' }),
    delayed: z.int().meta({ description: 'Waiting for the time of their next attempt' }),
    active: z.int(),
    failed: z.int(),
    paused: z.boolean(),
    demand: z.int().meta({
      description:
        'Jobs that need a worker now, for an autoscaler: active + waiting, or active alone while paused',
    }),
  })
  .meta({ id: 'Queue' });
export type QueueView = z.infer<typeof QueueView>;
export const QueueList = z
  .strictObject({ generation: QueueView, training: QueueView })
  .meta({ id: 'QueueList' });
export type QueueList = z.infer<typeof QueueList>;

/** RFC 9457, with the members of this API. */
export const Problem = z
  .strictObject({
    type: z.string().meta({ description: 'Page about the code, relative to the request' }),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.string().meta({ description: 'Stable; what programs compare' }),
    instance: z.string(),
    request_id: z.string(),
    errors: z.array(z.strictObject({ field: z.string(), message: z.string() })).optional(),
  })
  .meta({ id: 'Problem' });
export type Problem = z.infer<typeof Problem>;

/** What the `type` of a problem leads to. */
export const ProblemPage = z
  .strictObject({
    type: z.string(),
    code: z.string(),
    title: z.string(),
    status: z.int(),
    retryable: z.boolean().meta({ description: 'Whether the same request can succeed later' }),
  })
  .meta({ id: 'ProblemPage' });
export type ProblemPage = z.infer<typeof ProblemPage>;

export const ReadinessView = z
  .strictObject({
    ready: z.boolean(),
    checks: z
      .record(z.string(), z.strictObject({ ok: z.boolean(), error: z.string().optional() }))
      .meta({ description: 'By part: redis, store' }),
  })
  .meta({ id: 'Readiness' });
