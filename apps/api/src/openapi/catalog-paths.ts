import {
  type ErrorCode,
  ModelList,
  ProblemPage,
  QueueList,
  ReadinessView,
  WorkerList,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiOperationObject, ZodOpenApiPathsObject, ZodOpenApiResponseObject } from 'zod-openapi';
import { commonHeaders, problems } from './problems.ts';
import { json } from './responses.ts';

function read(
  tag: 'installation' | 'operations',
  operationId: string,
  summary: string,
  response: ZodOpenApiResponseObject,
  codes: ErrorCode[] = [],
): { get: ZodOpenApiOperationObject } {
  return {
    get: {
      tags: [tag],
      operationId,
      summary,
      responses: { 200: response, ...problems(...codes) },
    },
  };
}

export const catalogPaths: ZodOpenApiPathsObject = {
  '/v1/models': read('installation', 'listModels', 'Models of the catalog', json('Every model', ModelList), [
    'unauthorized',
  ]),
  '/v1/workers': read(
    'installation',
    'listWorkers',
    'Workers that are alive',
    json('Every worker', WorkerList),
    ['unauthorized', 'queue_unavailable'],
  ),
  '/v1/queue': read(
    'installation',
    'getQueue',
    'What waits and runs, for an autoscaler',
    json('Both queues', QueueList),
    ['unauthorized', 'queue_unavailable'],
  ),
};

export const operationPaths: ZodOpenApiPathsObject = {
  '/healthz': read(
    'operations',
    'getHealth',
    'Whether the process lives',
    json('It does', z.object({ status: z.literal('ok') })),
  ),
  '/readyz': {
    get: {
      tags: ['operations'],
      operationId: 'getReadiness',
      summary: 'Whether jobs can be accepted',
      responses: {
        200: json('Everything answers', ReadinessView),
        503: json('Something is away; `checks` says what', ReadinessView),
        ...problems(),
      },
    },
  },
  '/metrics': read('operations', 'getMetrics', 'Metrics for Prometheus', {
    description: 'Text exposition format',
    headers: z.object(commonHeaders),
    content: { 'text/plain': { schema: z.string() } },
  }),
  '/openapi.json': read(
    'operations',
    'getOpenApi',
    'This document',
    json('OpenAPI 3.1', z.record(z.string(), z.unknown())),
  ),
  '/problems/{code}': {
    get: {
      tags: ['operations'],
      operationId: 'getProblem',
      summary: 'What a problem code means',
      requestParams: { path: z.object({ code: z.string().meta({ example: 'validation_failed' }) }) },
      responses: { 200: json('The code', ProblemPage), ...problems('not_found') },
    },
  },
};
