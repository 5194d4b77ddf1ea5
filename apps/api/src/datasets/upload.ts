import { join } from 'node:path';
import { type Dataset, type DatasetStore, DatasetUploadQuery } from '@atelier/shared';
import type { Request } from 'express';
import { receiveFile, unsupportedType } from '../uploads/receive.ts';
import { validate } from '../validation/validate.ts';
import { openArchive } from './archive.ts';
import { checkDataset } from './check.ts';
import { receiveForm } from './form.ts';
import type { DatasetLimits } from './limits.ts';

/** The second is what Windows calls it. */
export const ARCHIVE_TYPES = ['application/zip', 'application/x-zip-compressed'];
export const FORM_TYPE = 'multipart/form-data';

export interface ReceivedDataset {
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
  { tenant, limits, dir }: ReceivedDataset,
): Promise<Dataset> {
  if (req.is(ARCHIVE_TYPES)) {
    const { name } = validate(DatasetUploadQuery, req.query, 'query');
    const path = join(dir, 'archive');
    await receiveFile(req, path, { maxBytes: limits.maxBytes, what: 'a zip archive' });
    return addArchive(datasets, path, { tenant, name, limits });
  }
  if (!req.is(FORM_TYPE)) throw unsupportedType(req, `${FORM_TYPE} or ${ARCHIVE_TYPES[0]}`);
  const form = await receiveForm(req, dir, limits);
  const { name } = validate(DatasetUploadQuery, form.name === undefined ? {} : { name: form.name }, 'form');
  if (form.archive !== null) return addArchive(datasets, form.archive, { tenant, name, limits });
  return datasets.add(tenant, { name, ...(await checkDataset(form.entries, limits)) });
}

/** Checks every file of an archive on disk, then stores them as a dataset. */
export async function addArchive(
  datasets: DatasetStore,
  path: string,
  { tenant, name, limits, id }: { tenant: string; name: string; limits: DatasetLimits; id?: string },
): Promise<Dataset> {
  const archive = await openArchive(path, limits);
  try {
    return await datasets.add(tenant, { name, ...(await checkDataset(archive.entries, limits)) }, id);
  } finally {
    archive.close();
  }
}
