import {
  ListQuery,
  type ProgressEvent,
  TrainingJob,
  TrainingList,
  TrainingMetrics,
  TrainingRequest,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject, ZodOpenApiResponseObject } from 'zod-openapi';
import { trainingExample, trainingRequestExample } from './examples.ts';
import { commonHeaders, problems } from './problems.ts';

const tags = ['trainings'];
const id = z.string().meta({ description: 'Id of the job', example: trainingExample.id });
const path = z.object({ id });

function json(
  description: string,
  schema: z.ZodType,
  example: unknown,
  headers: z.ZodRawShape = {},
): ZodOpenApiResponseObject {
  return {
    description,
    headers: z.object({ ...commonHeaders, ...headers }),
    content: { 'application/json': { schema, example } },
  };
}

const succeeded: TrainingJob = {
  ...trainingExample,
  status: 'succeeded',
  progress: { step: 300, steps: 300, fraction: 1, eta_s: 0 },
  queue: { position: null, eta_s: null },
  output: { lora: 'ink-wash@1' },
  attempts: 1,
  started_at: '2026-11-24T10:00:00.020Z',
  finished_at: '2026-11-24T10:04:10.000Z',
};
const running: TrainingJob = {
  ...trainingExample,
  status: 'running',
  progress: { step: 120, steps: 300, fraction: 0.4, eta_s: 150 },
  queue: { position: null, eta_s: null },
  attempts: 1,
  started_at: '2026-11-24T10:00:00.020Z',
};

export const trainingPaths: ZodOpenApiPathsObject = {
  '/v1/trainings': {
    post: {
      tags,
      operationId: 'createTraining',
      summary: 'Submit a training of a LoRA on a dataset',
      description:
        'The job is durable when the answer comes. Each checkpoint becomes a version of the LoRA; the last one is ' +
        'the output. A trainer that shuts down stores its state, and the next one goes on from there.',
      requestBody: {
        required: true,
        content: { 'application/json': { schema: TrainingRequest, example: trainingRequestExample } },
      },
      responses: {
        202: json('The job was accepted', TrainingJob, trainingExample, {
          Location: z.string().meta({ description: 'Path of the job' }),
        }),
        ...problems(
          'validation_failed',
          'invalid_json',
          'unauthorized',
          'payload_too_large',
          'unsupported_media_type',
          'unknown_model',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
    get: {
      tags,
      operationId: 'listTrainings',
      summary: 'List trainings, newest first',
      requestParams: { query: ListQuery },
      responses: {
        200: json('A page', TrainingList, { data: [succeeded], next_cursor: null } satisfies TrainingList),
        ...problems('validation_failed', 'unauthorized', 'queue_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}': {
    get: {
      tags,
      operationId: 'getTraining',
      summary: 'Get a training',
      requestParams: { path },
      responses: {
        200: json('The job', TrainingJob, succeeded),
        ...problems('unauthorized', 'not_found', 'queue_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}/cancel': {
    post: {
      tags,
      operationId: 'cancelTraining',
      summary: 'Cancel a training',
      description: 'A running job stops within one optimizer step; versions that it has published stay.',
      requestParams: { path },
      responses: {
        200: json('The job is canceled', TrainingJob, {
          ...trainingExample,
          status: 'canceled',
          finished_at: '2026-11-24T10:00:01.000Z',
        } satisfies TrainingJob),
        202: json('The job runs and was told to stop', TrainingJob, running),
        ...problems('unauthorized', 'not_found', 'conflict', 'queue_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}/events': {
    get: {
      tags,
      operationId: 'streamTraining',
      summary: 'Follow a training by server-sent events',
      description: 'The events are those of a generation; progress counts optimizer steps.',
      requestParams: {
        path,
        header: z.object({
          'Last-Event-ID': z
            .string()
            .optional()
            .meta({ description: 'Id of the last event seen', example: '1-running-120' }),
        }),
      },
      responses: {
        200: {
          description: 'The stream',
          headers: z.object(commonHeaders),
          content: {
            'text/event-stream': {
              schema: z.string(),
              example: `id: 1-running-120\nevent: progress\ndata: ${JSON.stringify({
                id: running.id,
                status: running.status,
                progress: running.progress,
              } satisfies ProgressEvent)}\n\n`,
            },
          },
        },
        204: {
          description: 'The job has ended, and Last-Event-ID is its last event',
          headers: z.object(commonHeaders),
        },
        ...problems('unauthorized', 'not_found', 'queue_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}/metrics': {
    get: {
      tags,
      operationId: 'getTrainingMetrics',
      summary: 'Losses and checkpoints of a training, as of its latest checkpoint',
      requestParams: { path },
      responses: {
        200: json('What was measured', TrainingMetrics, {
          steps: [{ step: 1, epoch: 0, loss: 0.61, learning_rate: 1e-4, gradient_norm: 0.02 }],
          validation: [{ epoch: 0, loss: 0.58 }],
          checkpoints: [{ epoch: 10, step: 30, lora: 'ink-wash@1' }],
          samples: [],
          skipped: [],
        } satisfies TrainingMetrics),
        ...problems('unauthorized', 'not_found', 'queue_unavailable', 'store_unavailable'),
      },
    },
  },
};
