import { randomUUIDv7 } from 'node:crypto';

const ID = /^dst_[0-9a-f]{32}$/;

/** A new id such as `dst_0199...`: sorts by the millisecond of creation. */
export function newDatasetId(): string {
  return `dst_${randomUUIDv7().replaceAll('-', '')}`;
}

export const isDatasetId = (text: string): boolean => ID.test(text);

/** When an id was made, in milliseconds since 1970: the first 48 bits of a UUID of version 7 (RFC 9562, 5.7). */
export const datasetIdTime = (id: string): number => Number.parseInt(id.slice(4, 16), 16);

/** Prefix of all objects of a tenant's datasets. */
export const datasetsPrefix = (tenant: string): string => `tenants/${tenant}/datasets/`;

/** Prefix of all objects of one dataset. */
export const datasetPrefix = (tenant: string, id: string): string => `${datasetsPrefix(tenant)}${id}/`;

/** The object that makes a dataset exist; comes before its files in a listing. */
export const datasetKey = (tenant: string, id: string): string => `${datasetPrefix(tenant, id)}dataset.json`;

/** @param path of a file of the dataset, such as `images/001.png` */
export const datasetFileKey = (tenant: string, id: string, path: string): string =>
  `${datasetPrefix(tenant, id)}${path}`;
