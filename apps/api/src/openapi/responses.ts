import type { ProgressEvent } from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiResponseObject, ZodOpenApiResponsesObject } from 'zod-openapi';
import { commonHeaders } from './problems.ts';

/** A JSON body; `example` is left out where there is none. */
export function json(
  description: string,
  schema: z.ZodType,
  example?: unknown,
  headers: z.ZodRawShape = {},
): ZodOpenApiResponseObject {
  return {
    description,
    headers: z.object({ ...commonHeaders, ...headers }),
    content: { 'application/json': example === undefined ? { schema } : { schema, example } },
  };
}

/** A file of pixels, in one of the given media types. */
export function picture(description: string, types: readonly string[]): ZodOpenApiResponseObject {
  return {
    description,
    headers: z.object({
      ...commonHeaders,
      ETag: z.string().meta({ description: 'SHA-256 of the file' }),
      'Content-Length': z.string(),
      'Cache-Control': z.string(),
    }),
    content: Object.fromEntries(
      types.map((type) => [type, { schema: { type: 'string' as const, format: 'binary' } }]),
    ),
  };
}

/** Header parameters of a stream of events. @param example id of an event */
export function resumable(example: string): z.ZodObject {
  return z.object({
    'Last-Event-ID': z.string().optional().meta({ description: 'Id of the last event seen', example }),
  });
}

/** The stream of a job's events, and that there is nothing to come. */
export function eventStream(eventId: string, event: ProgressEvent): ZodOpenApiResponsesObject {
  return {
    200: {
      description: 'The stream',
      headers: z.object(commonHeaders),
      content: {
        'text/event-stream': {
          schema: z.string(),
          example: `id: ${eventId}\nevent: progress\ndata: ${JSON.stringify(event)}\n\n`,
        },
      },
    },
    204: {
      description: 'The job has ended, and Last-Event-ID is its last event',
      headers: z.object(commonHeaders),
    },
  };
}
