import { join } from 'node:path';
import { type Dataset, type DatasetStore, DatasetUploadQuery } from '@atelier/shared';
import type { Request } from 'express';
import { receiveFile, unsupportedType } from '../uploads/receive.ts';
import { validate } from '../validation/validate.ts';
import { openArchive } from './archive.ts';
import { checkDataset } from './check.ts';
import type { UploadedEntry } from './entry.ts';
import { receiveForm } from './form.ts';
import type { DatasetLimits } from './limits.ts';

/** The second is what Windows calls it. */
export const ARCHIVE_TYPES = ['application/zip', 'application/x-zip-compressed'];
export const FORM_TYPE = 'multipart/form-data';

export interface DatasetUpload {
  tenant: string;
  limits: DatasetLimits;
  /** An empty folder for what is received. */
  dir: string;
}

/**
 * Makes the body of a request a dataset: received whole, every file checked, then stored. A body that is refused
 * leaves nothing in the store.
 * @throws AtelierError of the step that refused it
 */
export async function uploadDataset(
  datasets: DatasetStore,
  req: Request,
  { tenant, limits, dir }: DatasetUpload,
): Promise<Dataset> {
  const add = async (name: string, entries: readonly UploadedEntry[]): Promise<Dataset> =>
    datasets.add(tenant, { name, ...(await checkDataset(entries, limits)) });
  const addArchive = async (name: string, path: string): Promise<Dataset> => {
    const archive = await openArchive(path, limits);
    try {
      return await add(name, archive.entries);
    } finally {
      archive.close();
    }
  };

  if (req.is(ARCHIVE_TYPES)) {
    const { name } = validate(DatasetUploadQuery, req.query, 'query');
    const path = join(dir, 'archive');
    await receiveFile(req, path, { maxBytes: limits.maxBytes, what: 'a zip archive' });
    return addArchive(name, path);
  }
  if (!req.is(FORM_TYPE)) throw unsupportedType(req, `${FORM_TYPE} or ${ARCHIVE_TYPES[0]}`);
  const form = await receiveForm(req, dir, limits);
  const { name } = validate(DatasetUploadQuery, form.name === undefined ? {} : { name: form.name }, 'form');
  return form.archive === null ? add(name, form.entries) : addArchive(name, form.archive);
}
