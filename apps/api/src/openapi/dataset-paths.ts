import {
  Dataset,
  DatasetList,
  DatasetListQuery,
  DatasetUpload,
  DatasetUploadQuery,
  DatasetUploadRequest,
} from '@atelier/shared';
import { z } from 'zod';
import type { ZodOpenApiPathsObject } from 'zod-openapi';
import {
  datasetExample,
  datasetSummaryExample,
  datasetUploadExample,
  datasetUploadRequestExample,
} from './examples.ts';
import { commonHeaders, problems } from './problems.ts';
import { json } from './responses.ts';

const tags = ['datasets'];
const path = z.object({ id: Dataset.shape.id });
const uploadPath = z.object({ id: DatasetUpload.shape.id });

const binary = { type: 'string' as const, format: 'binary' };
const files = { type: 'array' as const, items: binary };

export const datasetPaths: ZodOpenApiPathsObject = {
  '/v1/datasets': {
    get: {
      tags,
      operationId: 'listDatasets',
      summary: 'List datasets, oldest first',
      requestParams: { query: DatasetListQuery },
      responses: {
        200: json('A page', DatasetList, {
          data: [datasetSummaryExample],
          next_cursor: null,
        } satisfies DatasetList),
        ...problems('validation_failed', 'unauthorized', 'store_unavailable'),
      },
    },
    post: {
      tags,
      operationId: 'uploadDataset',
      summary: 'Upload images with their prompts',
      description:
        'Either a zip archive with `images/NNN.(png|jpg|jpeg|webp)` and `prompts/NNN.txt`, as the body or as the ' +
        'part `archive` of a form, or the files themselves as parts `images` and `prompts`. NNN is a number that an ' +
        'image and its prompt have in common. All files are checked before any is stored; everything that is wrong ' +
        'is listed under the name of its file.',
      requestParams: {
        query: DatasetUploadQuery.partial().meta({ description: 'For a body that is an archive' }),
      },
      requestBody: {
        required: true,
        content: {
          'multipart/form-data': {
            schema: {
              type: 'object',
              required: ['name'],
              properties: {
                name: { type: 'string', example: 'ink-wash' },
                archive: binary,
                images: files,
                prompts: files,
              },
            },
          },
          'application/zip': { schema: binary },
        },
      },
      responses: {
        201: json('The dataset', Dataset, datasetExample, {
          Location: z.string().meta({ description: 'Path of the dataset' }),
        }),
        ...problems(
          'validation_failed',
          'unauthorized',
          'payload_too_large',
          'unsupported_media_type',
          'dataset_invalid',
          'store_unavailable',
        ),
      },
    },
  },
  '/v1/datasets/uploads': {
    post: {
      tags,
      operationId: 'announceDatasetUpload',
      summary: 'Announce a large archive and learn where to send it',
      description:
        'The archive goes past the API to the bucket where there is one. Send it to `url` by `method` with `headers`, ' +
        'then `POST /v1/datasets/uploads/{id}/complete`. The answer is the same for every store: only the host of ' +
        '`url` differs.',
      requestBody: {
        required: true,
        content: {
          'application/json': { schema: DatasetUploadRequest, example: datasetUploadRequestExample },
        },
      },
      responses: {
        201: json('What to send where', DatasetUpload, datasetUploadExample),
        ...problems(
          'validation_failed',
          'invalid_json',
          'unauthorized',
          'payload_too_large',
          'unsupported_media_type',
          'store_unavailable',
        ),
      },
    },
  },
  '/v1/datasets/uploads/{id}': {
    put: {
      tags,
      operationId: 'sendDatasetUpload',
      summary: 'Send an announced archive where the store takes none itself',
      description: '`url` of an announcement. It asks for the token of the announcement, not for a key.',
      requestParams: {
        path: uploadPath,
        header: z.object({ 'X-Upload-Token': z.string().meta({ description: 'From the announcement' }) }),
      },
      requestBody: { required: true, content: { 'application/zip': { schema: binary } } },
      responses: {
        200: { description: 'It is there whole', headers: z.object(commonHeaders) },
        ...problems(
          'validation_failed',
          'unauthorized',
          'not_found',
          'conflict',
          'upload_expired',
          'payload_too_large',
          'unsupported_media_type',
          'store_unavailable',
        ),
      },
    },
  },
  '/v1/datasets/uploads/{id}/complete': {
    post: {
      tags,
      operationId: 'completeDatasetUpload',
      summary: 'Make a sent archive a dataset',
      description:
        'The archive is compared with the announcement, then checked like one that is uploaded directly. Possible ' +
        'once: `conflict` says which dataset it has become, or that nothing was sent yet. An archive that is refused ' +
        'is removed with its upload. What is not completed within 12 hours of the announcement is removed.',
      requestParams: { path: uploadPath },
      responses: {
        201: json('The dataset', Dataset, datasetExample, {
          Location: z.string().meta({ description: 'Path of the dataset' }),
        }),
        ...problems(
          'unauthorized',
          'not_found',
          'conflict',
          'upload_expired',
          'payload_too_large',
          'dataset_invalid',
          'queue_unavailable',
          'store_unavailable',
        ),
      },
    },
  },
  '/v1/datasets/{id}': {
    get: {
      tags,
      operationId: 'getDataset',
      summary: 'Get a dataset with the list of its files',
      requestParams: { path },
      responses: {
        200: json('The dataset', Dataset, datasetExample),
        ...problems('unauthorized', 'not_found', 'store_unavailable'),
      },
    },
    delete: {
      tags,
      operationId: 'deleteDataset',
      summary: 'Delete a dataset with all its files',
      description:
        'Refused while a training that has not ended uses it; trainings that have ended need it no more.',
      requestParams: { path },
      responses: {
        204: { description: 'It is gone', headers: z.object(commonHeaders) },
        ...problems('unauthorized', 'not_found', 'dataset_in_use', 'queue_unavailable', 'store_unavailable'),
      },
    },
  },
};
