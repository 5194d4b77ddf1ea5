import { z } from 'zod';
import { LoraName } from './lora.ts';

/** One object of a dataset. */
export const DatasetFile = z
  .strictObject({
    path: z.string().meta({ description: 'Below the dataset', example: 'images/001.png' }),
    size: z.int().meta({ description: 'Bytes' }),
    sha256: z.string(),
    width: z.int().optional().meta({ description: 'Of an image, in pixels as it is stored' }),
    height: z.int().optional(),
  })
  .meta({ id: 'DatasetFile' });
export type DatasetFile = z.infer<typeof DatasetFile>;

const summary = {
  id: z.string().meta({ example: 'dst_0199b1a6c1d27a6e8f0b8d8a3f6f0c11' }),
  name: LoraName.meta({ description: 'Given by the client; several datasets may have one name' }),
  items: z.int().min(1).meta({ description: 'Images, each with its prompt' }),
  bytes: z.int().meta({ description: 'Of all files together' }),
  created_at: z.iso.datetime(),
};

export const DatasetSummary = z.strictObject(summary).meta({ id: 'DatasetSummary' });
export type DatasetSummary = z.infer<typeof DatasetSummary>;

/** `dataset.json` beside the files in the object store. A dataset exists from the moment that this does. */
export const Dataset = z
  .strictObject({
    ...summary,
    warnings: z.array(z.string()).meta({ description: 'What the upload left out or noticed without harm' }),
    files: z.array(DatasetFile).meta({ description: 'In order of path' }),
  })
  .meta({ id: 'Dataset' });
export type Dataset = z.infer<typeof Dataset>;

export const DatasetList = z
  .strictObject({
    data: z.array(DatasetSummary).meta({ description: 'Oldest first' }),
    next_cursor: z.string().nullable().meta({ description: 'null on the last page' }),
  })
  .meta({ id: 'DatasetList' });
export type DatasetList = z.infer<typeof DatasetList>;

/** Query of GET /v1/datasets. */
export const DatasetListQuery = z.strictObject({
  limit: z.coerce.number().int().min(1).max(100).default(50),
  cursor: z
    .string()
    .regex(/^dst_[0-9a-f]{32}$/, { error: 'allowed is `next_cursor` of the page before' })
    .optional()
    .meta({ description: '`next_cursor` of the page before' }),
});

/** Body of POST /v1/datasets/uploads. */
export const DatasetUploadRequest = z
  .strictObject({
    size: z.int().min(1).meta({ description: 'Bytes of the zip archive', example: 734_003_200 }),
    name: LoraName.optional().meta({ description: 'Of the dataset; made from `filename` when absent' }),
    filename: z.string().min(1).max(255).optional().meta({ example: 'Ink Wash.zip' }),
    sha256: z
      .string()
      .regex(/^[0-9a-f]{64}$/, { error: 'allowed are 64 hexadecimal digits in lower case' })
      .optional()
      .meta({ description: 'Of the archive; what is uploaded is compared with it' }),
  })
  .meta({ id: 'DatasetUploadRequest' });
export type DatasetUploadRequest = z.infer<typeof DatasetUploadRequest>;

/** Where the archive is to be sent, whoever serves that URL: the bucket, or the API itself. */
export const DatasetUpload = z
  .strictObject({
    id: z.string().meta({ example: 'upl_0199b1a6c1d27a6e8f0b8d8a3f6f0c11' }),
    url: z.string(),
    method: z.literal('PUT'),
    headers: z.record(z.string(), z.string()).meta({ description: 'To be sent as they are, no key besides' }),
    expires_at: z.iso.datetime().meta({ description: 'The request to `url` must begin before' }),
    max_bytes: z.int().meta({ description: 'Largest archive that is taken in this way' }),
  })
  .meta({ id: 'DatasetUpload' });
export type DatasetUpload = z.infer<typeof DatasetUpload>;

/** Query of POST /v1/datasets when the body is an archive; in a form these are fields. */
export const DatasetUploadQuery = z.strictObject({ name: LoraName });
