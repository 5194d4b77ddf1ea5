import {
  ListQuery,
  TrainingCheckpointList,
  TrainingJob,
  TrainingList,
  TrainingMetrics,
  TrainingRequest,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject } from 'zod-openapi';
import { trainingExample, trainingRequestExample } from './examples.ts';
import { commonHeaders, problems } from './problems.ts';
import { eventStream, json, picture, resumable } from './responses.ts';

const tags = ['trainings'];
const id = z.string().meta({ description: 'Id of the job', example: trainingExample.id });
const path = z.object({ id });

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
const sample = {
  prompt: 'a heron, ink wash',
  seed: 42,
  width: 128,
  height: 128,
  sha256: '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
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
        header: resumable('1-running-120'),
      },
      responses: {
        ...eventStream('1-running-120', {
          id: running.id,
          status: running.status,
          progress: running.progress,
        }),
        ...problems('unauthorized', 'not_found', 'queue_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}/metrics': {
    get: {
      tags,
      operationId: 'getTrainingMetrics',
      summary: 'Losses, checkpoints and samples of a training; seconds old while it runs',
      requestParams: { path },
      responses: {
        200: json('What was measured', TrainingMetrics, {
          steps: [{ step: 1, epoch: 0, loss: 0.61, learning_rate: 1e-4, gradient_norm: 0.02 }],
          validation: [{ epoch: 0, loss: 0.58 }],
          checkpoints: [{ epoch: 10, step: 30, lora: 'ink-wash@1' }],
          samples: [{ epoch: 10, step: 30, index: 0, ...sample }],
          skipped: [],
        } satisfies TrainingMetrics),
        ...problems('unauthorized', 'not_found', 'queue_unavailable', 'store_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}/checkpoints': {
    get: {
      tags,
      operationId: 'listTrainingCheckpoints',
      summary: 'The versions of a training with the samples that each drew, oldest first',
      description:
        'Step 0 shows the model before training. Compare the samples, then name the `lora` of the best in a generation.',
      requestParams: { path },
      responses: {
        200: json('All so far', TrainingCheckpointList, {
          data: [
            {
              epoch: 10,
              step: 30,
              lora: 'ink-wash@1',
              validation_loss: 0.58,
              samples: [
                { ...sample, url: `http://localhost:6006/v1/trainings/${trainingExample.id}/samples/30/0` },
              ],
            },
          ],
        } satisfies TrainingCheckpointList),
        ...problems('unauthorized', 'not_found', 'queue_unavailable', 'store_unavailable'),
      },
    },
  },
  '/v1/trainings/{id}/samples/{step}/{index}': {
    get: {
      tags,
      operationId: 'getTrainingSample',
      summary: 'Download a sample',
      requestParams: {
        path: z.object({
          id,
          step: z.string().meta({ description: 'Optimizer step of the checkpoint', example: '30' }),
          index: z.string().meta({ description: 'Position in `sample_prompts`, from 0', example: '0' }),
        }),
        header: z.object({
          Range: z.string().optional().meta({ example: 'bytes=0-1023' }),
          'If-None-Match': z.string().optional(),
        }),
      },
      responses: {
        200: picture('The picture', ['image/png']),
        206: picture('The range of it', ['image/png']),
        304: { description: 'The client has it', headers: z.object(commonHeaders) },
        ...problems(
          'unauthorized',
          'not_found',
          'range_not_satisfiable',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
  },
};
