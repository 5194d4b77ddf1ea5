import { ERRORS, type ErrorCode, Problem } from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiResponseObject, ZodOpenApiResponsesObject } from 'zod-openapi';
import { problemType } from '../problem.ts';

const requestId = z
  .string()
  .meta({ description: 'Given by the client or made by the API; it is in the log' });

/** Headers of every response. */
export const commonHeaders = { 'X-Request-Id': requestId };

const DETAILS: Partial<Record<ErrorCode, string>> = {
  validation_failed: 'steps: found 51, allowed are whole numbers from 1 to 50',
  invalid_json: 'body: Unexpected end of JSON input at position 12 (line 1 column 13)',
  unsupported_media_type: 'Content-Type: found "text/plain", allowed is application/json',
  payload_too_large: 'body: allowed are at most 25165824 bytes',
  unknown_model: 'The model "flux" is not in the catalog: mini',
  unknown_lora:
    'styles[0].lora: found "ink-wsh"; there is no such LoRA; did you mean ink-wash? GET /v1/loras lists all 3',
  lora_invalid:
    'the file: lora_A of transformer.single_transformer_blocks.0.proj_out has shape [16, 64]; expected [16, 1280]',
  dataset_invalid: '2 problems; images/007.png: has no prompt: prompts/007.txt is missing',
  lora_in_use: 'ink-wash is used by 1 job that has not ended: gen_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  dataset_in_use:
    'dst_0199b1a6c1d27a6e8f0b8d8a3f6f0c11 is used by 1 training that has not ended: trn_0199b1a6c1d27a6e8f0b8d8a3f6f0c12',
  upload_expired: 'The URL of upl_0199b1a6c1d27a6e8f0b8d8a3f6f0c11 expired at 2026-11-24T10:15:00.000Z',
  image_invalid: 'image.file: found 60000 x 60000 pixels, allowed are at most 50000000',
  forbidden: 'Authorization: this key has read; POST /v1/generations needs generate',
  not_found: 'No generation has the id gen_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  queue_unavailable: 'Redis does not answer; nothing was queued or changed. Try again in 5 s.',
};

/** Problem responses of the codes that a route can answer with, grouped by status; each route can answer 421 and 500. */
export function problems(...codes: ErrorCode[]): ZodOpenApiResponsesObject {
  const byStatus = Map.groupBy<number, ErrorCode>(
    [...codes, 'misdirected_request', 'internal_error'],
    (code) => ERRORS[code].status,
  );
  return Object.fromEntries(
    [...byStatus].map(([status, group]) => [String(status), problemResponse(status, group)]),
  );
}

function problemResponse(status: number, codes: readonly ErrorCode[]): ZodOpenApiResponseObject {
  const headers = {
    ...commonHeaders,
    ...(status === 503 ? { 'Retry-After': z.string().meta({ description: 'Seconds' }) } : {}),
  };
  return {
    description: codes.map((code) => `${code}: ${ERRORS[code].title}`).join('; '),
    headers: z.object(headers),
    content: {
      'application/problem+json': {
        schema: Problem,
        examples: Object.fromEntries(codes.map((code) => [code, { value: exampleOf(code) }])),
      },
    },
  };
}

function exampleOf(code: ErrorCode): Problem {
  const { status, title } = ERRORS[code];
  const detail = DETAILS[code] ?? title;
  const field = /^([\w.]+): (.*)$/.exec(detail);
  const hasErrors = field && (code === 'validation_failed' || code === 'image_invalid');
  return {
    type: problemType(code),
    title,
    status,
    detail,
    code,
    instance: '/v1/generations',
    request_id: '5b0c7f0e-6a0c-4f0e-9f0e-0d9b1a6c1d27',
    ...(hasErrors ? { errors: [{ field: field[1]!, message: field[2]! }] } : {}),
  };
}
