import { GenerationJob, GenerationList, GenerationRequest, ListQuery } from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject } from 'zod-openapi';
import { acceptedExample, finishedExample, requestExample } from './examples.ts';
import { commonHeaders, problems } from './problems.ts';
import { eventStream, json, picture, resumable } from './responses.ts';

const tags = ['generations'];
const id = z.string().meta({ description: 'Id of the job', example: acceptedExample.id });

const job = (description: string, example: GenerationJob, headers: z.ZodRawShape = {}) =>
  json(description, GenerationJob, example, headers);

const FORMATS = ['image/png', 'image/jpeg', 'image/webp'];

const submitted = {
  Location: z.string().meta({ description: 'Path of the job' }),
  'Preference-Applied': z
    .string()
    .optional()
    .meta({ description: 'The wait in seconds, at most 60', example: 'wait=60' }),
};

export const generationPaths: ZodOpenApiPathsObject = {
  '/v1/generations': {
    post: {
      tags,
      operationId: 'createGeneration',
      summary: 'Submit a generation',
      description: 'The job is durable when the answer comes. Disconnecting never cancels it.',
      requestParams: {
        header: z.object({
          Prefer: z.string().optional().meta({
            description: '`wait=N`: answer with the finished job if it ends within N seconds (at most 60)',
            example: 'wait=60',
          }),
        }),
      },
      requestBody: {
        required: true,
        content: { 'application/json': { schema: GenerationRequest, example: requestExample } },
      },
      responses: {
        200: job('The job ended within the wait', finishedExample, submitted),
        202: job('The job was accepted and has not ended yet', acceptedExample, submitted),
        ...problems(
          'validation_failed',
          'invalid_json',
          'unauthorized',
          'payload_too_large',
          'unsupported_media_type',
          'unknown_model',
          'unknown_lora',
          'image_invalid',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
    get: {
      tags,
      operationId: 'listGenerations',
      summary: 'List generations, newest first',
      requestParams: { query: ListQuery },
      responses: {
        200: {
          description: 'A page',
          headers: z.object(commonHeaders),
          content: {
            'application/json': {
              schema: GenerationList,
              example: { data: [finishedExample], next_cursor: null } satisfies GenerationList,
            },
          },
        },
        ...problems('validation_failed', 'unauthorized', 'queue_unavailable'),
      },
    },
  },
  '/v1/generations/{id}': {
    get: {
      tags,
      operationId: 'getGeneration',
      summary: 'Get a generation',
      requestParams: { path: z.object({ id }) },
      responses: {
        200: job('The job', finishedExample),
        ...problems('unauthorized', 'not_found', 'queue_unavailable'),
      },
    },
  },
  '/v1/generations/{id}/cancel': {
    post: {
      tags,
      operationId: 'cancelGeneration',
      summary: 'Cancel a generation',
      description: 'A running job stops within one denoising step. Canceling again changes nothing.',
      requestParams: { path: z.object({ id }) },
      responses: {
        200: job('The job is canceled', {
          ...acceptedExample,
          status: 'canceled',
          finished_at: '2026-11-24T10:00:01.000Z',
        }),
        202: job('The job runs and was told to stop', { ...acceptedExample, status: 'running', attempts: 1 }),
        ...problems('unauthorized', 'not_found', 'conflict', 'queue_unavailable'),
      },
    },
  },
  '/v1/generations/{id}/events': {
    get: {
      tags,
      operationId: 'streamGeneration',
      summary: 'Follow a generation by server-sent events',
      description:
        'The event `status` has the job as its data and is sent at first and whenever the status changes; the event ' +
        '`progress` has a ProgressEvent. The stream ends with the job. Each event is the newest state: a client that ' +
        'reads slowly gets fewer of them.',
      requestParams: {
        path: z.object({ id }),
        header: resumable('1-running-7'),
      },
      responses: {
        ...eventStream('1-running-7', {
          id: acceptedExample.id,
          status: 'running',
          progress: { step: 7, steps: 20, fraction: 0.35, eta_s: 0.5 },
        }),
        ...problems('unauthorized', 'not_found', 'queue_unavailable'),
      },
    },
  },
  '/v1/generations/{id}/images/{index}': {
    get: {
      tags,
      operationId: 'getGenerationImage',
      summary: 'Download a picture',
      requestParams: {
        path: z.object({
          id,
          index: z.string().meta({ description: 'Position in the output, from 0', example: '0' }),
        }),
        header: z.object({
          Range: z.string().optional().meta({ example: 'bytes=0-1023' }),
          'If-None-Match': z.string().optional(),
        }),
      },
      responses: {
        200: picture('The picture', FORMATS),
        206: picture('The range of it', FORMATS),
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
