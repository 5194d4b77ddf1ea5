import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Dataset } from '@atelier/shared';
import { type TestApi, expectJson } from './api.ts';
import { type ZipEntry, zip } from './zip.ts';

/** 24 x 16 pixels of one red. */
export const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAABgAAAAQCAMAAAA7+k+nAAAAA1BMVEXMMzN0dFbYAAAACXBIWXMAAAPoAAAD6AG1e1JrAAAADklEQVQY02Ng' +
    'GAWDCQAAAZAAAcWb20kAAAAASUVORK5CYII=',
  'base64',
);
/** The same picture. */
export const JPEG = Buffer.from(
  '/9j/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/2wBDAQcHBwoI' +
    'ChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCj/wAARCAAQABgDASIAAhEBAxEB/8QA' +
    'FQABAQAAAAAAAAAAAAAAAAAAAAb/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFgEBAQEAAAAAAAAAAAAAAAAAAAUH/8QAFBEBAAAAAAAAAAAA' +
    'AAAAAAAAAP/aAAwDAQACEQMRAD8AlgEFq4AD/9k=',
  'base64',
);

export const image = (stem: string, more: Partial<ZipEntry> = {}): ZipEntry => ({
  name: `images/${stem}.png`,
  data: PNG,
  ...more,
});
export const prompt = (stem: string, more: Partial<ZipEntry> = {}): ZipEntry => ({
  name: `prompts/${stem}.txt`,
  data: `ink wash painting number ${stem}`,
  ...more,
});
export const pair = (stem: string): ZipEntry[] => [image(stem), prompt(stem)];

/** POST /v1/datasets with an archive as the body. */
export const postArchive = (
  api: TestApi,
  body: Uint8Array,
  query = '?name=ink-wash',
  type = 'application/zip',
): Promise<Response> =>
  fetch(`${api.url}/v1/datasets${query}`, {
    method: 'POST',
    body: new Uint8Array(body),
    headers: { 'Content-Type': type },
  });

export const uploaded = async (
  api: TestApi,
  entries: readonly ZipEntry[],
  name = 'ink-wash',
): Promise<Dataset> => expectJson(await postArchive(api, zip(entries), `?name=${name}`), 201, Dataset);

/** Keys of all objects. */
export const storedKeys = async (api: TestApi): Promise<string[]> =>
  (await api.store.list('')).objects.map(({ key }) => key);

export async function emptyStore(api: TestApi): Promise<void> {
  for (const key of await storedKeys(api)) await api.store.delete(key);
}

/** What requests have on the API's disk. */
export const scratchFiles = (api: TestApi): Promise<string[]> =>
  readdir(join(api.config.ATELIER_CACHE_DIR, 'uploads')).catch(() => []);

export async function expectNothingLeft(api: TestApi): Promise<void> {
  expect(await storedKeys(api)).toEqual([]);
  expect(await scratchFiles(api)).toEqual([]);
}
