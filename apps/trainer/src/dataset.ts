import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { AtelierError, DatasetStore, type ObjectStore, datasetFileKey } from '@atelier/shared';

const GETS_AT_ONCE = 4;

/**
 * Copies a dataset from the object store into a folder, with `images/` and `prompts/` below.
 * @throws AtelierError `dataset_invalid` when there is none, or a file is gone or has changed; `store_unavailable`
 */
export async function fetchDataset(
  store: ObjectStore,
  tenant: string,
  id: string,
  folder: string,
  signal: AbortSignal,
): Promise<void> {
  const dataset = await new DatasetStore(store).get(tenant, id);
  if (!dataset) throw new AtelierError('dataset_invalid', `There is no dataset ${id} any more`);
  const fetchFile = async ({ path, sha256 }: (typeof dataset.files)[number]): Promise<void> => {
    const object = await store.get(datasetFileKey(tenant, id, path));
    const bytes = object && (await buffer(object.body));
    if (!bytes || createHash('sha256').update(bytes).digest('hex') !== sha256)
      throw new AtelierError('dataset_invalid', `${path} of dataset ${id} is not what was uploaded`);
    const target = join(folder, path);
    await mkdir(dirname(target), { recursive: true });
    await writeFile(target, bytes);
  };
  for (let i = 0; i < dataset.files.length; i += GETS_AT_ONCE) {
    signal.throwIfAborted();
    await Promise.all(dataset.files.slice(i, i + GETS_AT_ONCE).map(fetchFile));
  }
}
