import {
  ApiKey,
  ApiKeyList,
  ApiKeyListQuery,
  ApiKeyRequest,
  NewApiKey,
  type Scope,
  TenantList,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject } from 'zod-openapi';
import { problems } from './problems.ts';
import { json } from './responses.ts';

const tags = ['keys'];

const scopes: Scope[] = ['read', 'generate'];
const keyExample: ApiKey = {
  id: 'key_0199b1a6c1d27a6e8f0b8d8a3f6f0c11',
  name: 'ci',
  tenant: 'acme',
  scopes,
  prefix: 'atl_x7k2m9qa',
  last_four: 'Zr4T',
  created_at: '2026-11-24T10:00:00.000Z',
  last_used_at: '2026-11-24T10:05:00.000Z',
  expires_at: null,
  revoked_at: null,
};

export const keyPaths: ZodOpenApiPathsObject = {
  '/v1/keys': {
    get: {
      tags,
      operationId: 'listKeys',
      summary: 'List the keys of every tenant, oldest first',
      description: 'Those of ATELIER_API_KEYS are not among them.',
      requestParams: { query: ApiKeyListQuery },
      responses: {
        200: json('A page', ApiKeyList, { data: [keyExample], next_cursor: null } satisfies ApiKeyList),
        ...problems('validation_failed', 'unauthorized', 'queue_unavailable'),
      },
    },
    post: {
      tags,
      operationId: 'createKey',
      summary: 'Make a key',
      description:
        'The key is in this answer and nowhere else: what is kept is its SHA-256. The first key of an installation ' +
        'without ATELIER_API_KEYS must have the scope `admin` and not expire; from then on every request is asked ' +
        'for a key.',
      requestBody: {
        required: true,
        content: {
          'application/json': { schema: ApiKeyRequest, example: { name: 'ci', tenant: 'acme', scopes } },
        },
      },
      responses: {
        201: json('The key', NewApiKey, {
          ...keyExample,
          last_used_at: null,
          key: 'atl_x7k2m9qa_4Rb8TnQ2vXy6LwKz0PmDc9HfJs5Ge3Ua1Yi7Zr4T',
        } satisfies NewApiKey),
        ...problems(
          'validation_failed',
          'invalid_json',
          'unauthorized',
          'conflict',
          'payload_too_large',
          'unsupported_media_type',
          'queue_unavailable',
        ),
      },
    },
  },
  '/v1/keys/{id}': {
    delete: {
      tags,
      operationId: 'revokeKey',
      summary: 'Revoke a key',
      description:
        'It is refused within two seconds by every process. It stays listed; revoking it again changes nothing.',
      requestParams: { path: z.object({ id: ApiKey.shape.id }) },
      responses: {
        200: json('The key', ApiKey, {
          ...keyExample,
          revoked_at: '2026-11-25T09:00:00.000Z',
        } satisfies ApiKey),
        ...problems('unauthorized', 'not_found', 'queue_unavailable'),
      },
    },
  },
  '/v1/tenants': {
    get: {
      tags,
      operationId: 'listTenants',
      summary: 'List the tenants',
      responses: {
        200: json('Every tenant', TenantList, {
          data: [{ name: 'acme', keys: 2, generations: 1_204, trainings: 7 }],
        } satisfies TenantList),
        ...problems('unauthorized', 'queue_unavailable'),
      },
    },
  },
};
