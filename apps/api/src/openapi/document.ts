import { createDocument } from 'zod-openapi';
import { catalogPaths, operationPaths } from './catalog-paths.ts';
import { datasetPaths } from './dataset-paths.ts';
import { generationPaths } from './generation-paths.ts';
import { keyPaths } from './key-paths.ts';
import { loraPaths } from './lora-paths.ts';
import { secured } from './security.ts';
import { trainingPaths } from './training-paths.ts';
import { webhookPaths, webhookRequests } from './webhook-paths.ts';

let document: ReturnType<typeof createDocument> | undefined;

/** The API as OpenAPI 3.1, from the schemas that validate requests. */
export function openApiDocument(): ReturnType<typeof createDocument> {
  document ??= createDocument({
    openapi: '3.1.0',
    info: {
      title: 'atelier',
      version: '1',
      description:
        'A self-hosted FLUX.1 studio as a job API. Submit a generation, follow it, download its pictures. ' +
        'Every error is RFC 9457 problem+json with a stable code.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    servers: [{ url: '/' }],
    tags: [
      { name: 'generations', description: 'Pictures from prompts' },
      { name: 'loras', description: 'Styles: LoRA files with versions' },
      { name: 'datasets', description: 'Pictures with prompts, to train styles on' },
      { name: 'trainings', description: 'From a dataset to a LoRA' },
      { name: 'webhooks', description: 'Being told what becomes of a job' },
      { name: 'installation', description: 'Models, workers and queues' },
      { name: 'keys', description: 'Keys and tenants, for operators' },
      { name: 'operations', description: 'Probes, metrics and this document' },
    ],
    components: {
      securitySchemes: {
        key: {
          type: 'http',
          scheme: 'bearer',
          description:
            'A key of POST /v1/keys or of ATELIER_API_KEYS. Asked for only where the installation has some. A key ' +
            'belongs to a tenant: objects of others do not exist for it.',
        },
      },
    },
    paths: secured({
      ...generationPaths,
      ...loraPaths,
      ...datasetPaths,
      ...trainingPaths,
      ...webhookPaths,
      ...catalogPaths,
      ...keyPaths,
      ...operationPaths,
    }),
    webhooks: webhookRequests,
  });
  return document;
}
