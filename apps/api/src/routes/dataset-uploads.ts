import { join } from 'node:path';
import {
  AtelierError,
  DatasetStore,
  type DatasetUpload,
  DatasetUploadRequest,
  DatasetUploads,
  MAX_PRESIGNED_PUT_BYTES,
} from '@atelier/shared';
import type { IRouter, Request } from 'express';
import { tenantOf } from '../auth.ts';
import { announcedBody, fetchArchive, nameOf } from '../datasets/announced.ts';
import { ARCHIVE_TYPES, addArchive } from '../datasets/upload.ts';
import type { ApiDeps } from '../deps.ts';
import { jsonBody } from '../json-body.ts';
import { originOf } from '../origin.ts';
import { resource } from '../resource.ts';
import { unsupportedType } from '../uploads/receive.ts';
import type { ScratchFolder } from '../uploads/scratch.ts';
import { validate } from '../validation/validate.ts';

/** To begin the request that sends the archive; it may take longer. */
const EXPIRY_S = 15 * 60;
const TOKEN_HEADER = 'X-Upload-Token';

const idOf = (req: Request): string => String(req.params['id']);

/**
 * Takes an archive where no bucket does. Like a URL of a bucket it asks for no API key but for what the announcement
 * gave, in a header, because URLs are logged.
 */
export function datasetArchiveRoute(router: IRouter, { redis, store }: ApiDeps): void {
  const uploads = new DatasetUploads(store, redis);

  resource(router, '/v1/datasets/uploads/:id', {
    put: async (req, res) => {
      const { tenant, upload } = await uploads.expected(idOf(req), req.get(TOKEN_HEADER) ?? '');
      if (!req.is(ARCHIVE_TYPES)) throw unsupportedType(req, ARCHIVE_TYPES[0]!);
      await uploads.receive(tenant, upload.id, announcedBody(req, upload.size));
      res.status(200).end();
    },
  });
}

/** Archives that are announced, sent to a URL, then checked and made a dataset. */
export function datasetUploadRoutes(
  router: IRouter,
  { config, redis, settings, store }: ApiDeps,
  scratch: ScratchFolder,
): void {
  const datasets = new DatasetStore(store);
  const uploads = new DatasetUploads(store, redis);
  const { dataset: limits } = settings;
  const presign = store.presignPut !== undefined && settings.presignedUploads;
  const maxBytes = presign ? Math.min(limits.maxBytes, MAX_PRESIGNED_PUT_BYTES) : limits.maxBytes;

  resource(router, '/v1/datasets/uploads', {
    post: [
      ...jsonBody(settings.maxBodyBytes),
      async (req, res) => {
        const request = validate(DatasetUploadRequest, req.body);
        const { size, sha256 = null } = request;
        if (size > maxBytes)
          throw new AtelierError(
            'payload_too_large',
            `size: found ${size}, allowed are at most ${maxBytes} bytes`,
          );
        const { upload, presigned, token } = await uploads.announce(
          tenantOf(req),
          { name: nameOf(request), size, sha256 },
          { seconds: EXPIRY_S, presign },
        );
        const own = {
          url: `${originOf(req, config)}/v1/datasets/uploads/${upload.id}`,
          headers: { 'Content-Type': ARCHIVE_TYPES[0]!, [TOKEN_HEADER]: token },
        };
        res.set('Cache-Control', 'no-store').status(201);
        res.json({
          id: upload.id,
          ...(presigned ?? own),
          method: 'PUT',
          expires_at: upload.expires_at,
          max_bytes: maxBytes,
        } satisfies DatasetUpload);
      },
    ],
  });

  resource(router, '/v1/datasets/uploads/:id/complete', {
    post: async (req, res) => {
      const tenant = tenantOf(req);
      const dataset = await scratch.useFolder((dir) =>
        uploads.complete(tenant, idOf(req), async (upload, archive, id) => {
          const path = join(dir, 'archive');
          await fetchArchive(archive, path, upload);
          return addArchive(datasets, path, { tenant, name: upload.name, limits, id });
        }),
      );
      res.set('Location', `/v1/datasets/${dataset.id}`).status(201).json(dataset);
    },
  });
}
