import { randomUUIDv7 } from 'node:crypto';

const ID = /^dst_[0-9a-f]{32}$/;

/** A new id such as `dst_0199...`: sorts by the millisecond of creation. */
export function newDatasetId(): string {
  return `dst_${randomUUIDv7().replaceAll('-', '')}`;
}

export const isDatasetId = (text: string): boolean => ID.test(text);

/** When an id of a dataset or an upload was made, in milliseconds since 1970: the first 48 bits of a UUID of version 7 (RFC 9562, 5.7). */
export const idTime = (id: string): number => Number.parseInt(id.slice(4, 16), 16);

const UPLOAD_ID = /^upl_[0-9a-f]{32}$/;

/** A new id of an upload that was announced; carries its time as that of a dataset does. */
export const newUploadId = (): string => `upl_${randomUUIDv7().replaceAll('-', '')}`;

export const isUploadId = (text: string): boolean => UPLOAD_ID.test(text);

/** Prefix of all objects of a tenant's uploads. */
export const uploadsPrefix = (tenant: string): string => `tenants/${tenant}/uploads/`;

/** The document about an upload. */
export const uploadKey = (tenant: string, id: string): string => `${uploadsPrefix(tenant)}${id}/upload.json`;

/** What the client sends. */
export const uploadArchiveKey = (tenant: string, id: string): string =>
  `${uploadsPrefix(tenant)}${id}/archive.zip`;

/** Prefix of all objects of a tenant's datasets. */
export const datasetsPrefix = (tenant: string): string => `tenants/${tenant}/datasets/`;

/** Prefix of all objects of one dataset. */
export const datasetPrefix = (tenant: string, id: string): string => `${datasetsPrefix(tenant)}${id}/`;

/** The object that makes a dataset exist; comes before its files in a listing. */
export const datasetKey = (tenant: string, id: string): string => `${datasetPrefix(tenant, id)}dataset.json`;

/** @param path of a file of the dataset, such as `images/001.png` */
export const datasetFileKey = (tenant: string, id: string, path: string): string =>
  `${datasetPrefix(tenant, id)}${path}`;
