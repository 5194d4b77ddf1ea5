import {
  LoraFileQuery,
  LoraImportQuery,
  LoraList,
  LoraListQuery,
  LoraName,
  LoraPatch,
  LoraVersionView,
  LoraView,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject } from 'zod-openapi';
import { loraExample, loraVersionExample } from './examples.ts';
import { commonHeaders, problems } from './problems.ts';
import { json } from './responses.ts';

const tags = ['loras'];
const name = LoraName;

const file = { 'application/octet-stream': { schema: { type: 'string' as const, format: 'binary' } } };
const imported = { Location: z.string().meta({ description: 'Path of the version' }) };

export const loraPaths: ZodOpenApiPathsObject = {
  '/v1/loras': {
    get: {
      tags,
      operationId: 'listLoras',
      summary: 'List LoRAs in order of name',
      requestParams: { query: LoraListQuery },
      responses: {
        200: json('A page', LoraList, { data: [loraExample], next_cursor: null } satisfies LoraList),
        ...problems('validation_failed', 'unauthorized', 'queue_unavailable', 'store_unavailable'),
      },
    },
  },
  '/v1/loras/{name}': {
    get: {
      tags,
      operationId: 'getLora',
      summary: 'Get a LoRA',
      requestParams: { path: z.object({ name }) },
      responses: {
        200: json('The LoRA', LoraView, loraExample),
        ...problems('unauthorized', 'not_found', 'queue_unavailable', 'store_unavailable'),
      },
    },
    put: {
      tags,
      operationId: 'importLora',
      summary: 'Import a file as the next version',
      description:
        'The body is a .safetensors file of any dialect that FLUX LoRAs come in. It is checked before it is visible: ' +
        'a file that does not add up, or does not fit the model, is refused with the tensor at fault. ' +
        'The next job that names the LoRA uses the new version; jobs that were accepted before do not.',
      requestParams: { path: z.object({ name }), query: LoraImportQuery },
      requestBody: { required: true, content: file },
      responses: {
        200: json(
          'The latest version has these bytes already',
          LoraVersionView,
          loraVersionExample,
          imported,
        ),
        201: json('The new version', LoraVersionView, loraVersionExample, imported),
        ...problems(
          'validation_failed',
          'unauthorized',
          'conflict',
          'payload_too_large',
          'unsupported_media_type',
          'unknown_model',
          'lora_invalid',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
    patch: {
      tags,
      operationId: 'updateLora',
      summary: 'Describe or rename a LoRA',
      requestParams: { path: z.object({ name }) },
      requestBody: {
        required: true,
        content: {
          'application/json': { schema: LoraPatch, example: { default_weight: 0.8, tags: ['ink'] } },
        },
      },
      responses: {
        200: json('The LoRA as it is now', LoraView, loraExample),
        ...problems(
          'validation_failed',
          'invalid_json',
          'unauthorized',
          'not_found',
          'conflict',
          'lora_in_use',
          'payload_too_large',
          'unsupported_media_type',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
    delete: {
      tags,
      operationId: 'deleteLora',
      summary: 'Delete a LoRA with all its versions',
      description: 'Refused while a job that has not ended uses it. Numbers of versions are not used again.',
      requestParams: { path: z.object({ name }) },
      responses: {
        204: { description: 'It is gone', headers: z.object(commonHeaders) },
        ...problems(
          'unauthorized',
          'not_found',
          'conflict',
          'lora_in_use',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
  },
  '/v1/loras/{name}/versions/{version}': {
    get: {
      tags,
      operationId: 'getLoraVersion',
      summary: 'Get a version',
      requestParams: { path: z.object({ name, version: z.string().meta({ example: '3' }) }) },
      responses: {
        200: json('The version', LoraVersionView, loraVersionExample),
        ...problems('unauthorized', 'not_found', 'queue_unavailable', 'store_unavailable'),
      },
    },
  },
  '/v1/loras/{name}/file': {
    get: {
      tags,
      operationId: 'downloadLora',
      summary: 'Download a version',
      description: 'As it was imported, or written in the form that another program reads.',
      requestParams: {
        path: z.object({ name }),
        query: LoraFileQuery,
        header: z.object({
          Range: z.string().optional().meta({ example: 'bytes=0-1023' }),
          'If-None-Match': z.string().optional(),
        }),
      },
      responses: {
        200: { description: 'The file', headers: z.object(commonHeaders), content: file },
        206: { description: 'The range of it', headers: z.object(commonHeaders), content: file },
        304: { description: 'The client has it', headers: z.object(commonHeaders) },
        307: {
          description: 'Where the file is, for two minutes and without a key',
          headers: z.object({ ...commonHeaders, Location: z.string() }),
        },
        ...problems(
          'validation_failed',
          'unauthorized',
          'not_found',
          'range_not_satisfiable',
          'lora_invalid',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
  },
};
