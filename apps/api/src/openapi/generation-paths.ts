import { GenerationJob, GenerationList, GenerationRequest, ListQuery, ProgressEvent } from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject, ZodOpenApiResponseObject } from 'zod-openapi';
import { acceptedExample, finishedExample, requestExample } from './examples.ts';
import { commonHeaders, problems } from './problems.ts';

const tags = ['generations'];
const id = z.string().meta({ description: 'Id of the job', example: acceptedExample.id });

function job(
  description: string,
  example: GenerationJob,
  headers: z.ZodRawShape = {},
): ZodOpenApiResponseObject {
  return {
    description,
    headers: z.object({ ...commonHeaders, ...headers }),
    content: { 'application/json': { schema: GenerationJob, example } },
  };
}

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
        header: z.object({
          'Last-Event-ID': z
            .string()
            .optional()
            .meta({ description: 'Id of the last event seen', example: '1-running-7' }),
        }),
      },
      responses: {
        200: {
          description: 'The stream',
          headers: z.object(commonHeaders),
          content: {
            'text/event-stream': {
              schema: z.string(),
              example: `id: 1-running-7\nevent: progress\ndata: ${JSON.stringify({
                id: acceptedExample.id,
                status: 'running',
                progress: { step: 7, steps: 20, fraction: 0.35, eta_s: 0.5 },
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
        200: image('The picture'),
        206: image('The range of it'),
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

function image(description: string): ZodOpenApiResponseObject {
  return {
    description,
    headers: z.object({
      ...commonHeaders,
      ETag: z.string().meta({ description: 'SHA-256 of the file' }),
      'Content-Length': z.string(),
      'Cache-Control': z.string(),
    }),
    content: Object.fromEntries(
      ['image/png', 'image/jpeg', 'image/webp'].map((type) => [
        type,
        { schema: { type: 'string', format: 'binary' } },
      ]),
    ),
  };
}
