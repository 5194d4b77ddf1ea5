import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FolderStore } from '../object-store/folder-store.ts';
import { datasetFileKey, idTime, datasetKey, newDatasetId } from './names.ts';
import { DatasetStore, type NewDatasetFile } from './store.ts';

const TENANT = 'default';

let dir: string;
let store: FolderStore;
let datasets: DatasetStore;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-datasets-'));
  store = new FolderStore(dir);
  datasets = new DatasetStore(store);
});
afterEach(() => rm(dir, { recursive: true }));

const file = (path: string, text = path): NewDatasetFile => ({
  file: { path, size: text.length, sha256: 'unchecked here' },
  contentType: 'text/plain',
  read: async () => Buffer.from(text),
});
const pair = (stem: string) => [file(`images/${stem}.png`), file(`prompts/${stem}.txt`)];
const add = (name: string, files = pair('001')) => datasets.add(TENANT, { name, warnings: [], files });
const keys = async () => (await store.list('')).objects.map(({ key }) => key);

test('a dataset is its files and the document about them', async () => {
  const made = await add('ink', [...pair('001'), ...pair('002'), ...pair('003')]);
  expect(made).toMatchObject({ name: 'ink', items: 3, bytes: 3 * (14 + 15) });
  expect(await datasets.get(TENANT, made.id)).toEqual(made);
  expect(await keys()).toHaveLength(7);
  expect(await store.head(datasetFileKey(TENANT, made.id, 'images/002.png'))).toMatchObject({ size: 14 });
  expect(await datasets.get('other', made.id)).toBeNull();
  expect(await datasets.get(TENANT, '../default')).toBeNull();
});

test('a file that cannot be read leaves nothing', async () => {
  const broken: NewDatasetFile = {
    ...file('prompts/001.txt'),
    read: () => Promise.reject(new Error('the disk says no')),
  };
  await expect(add('ink', [file('images/001.png'), broken, ...pair('002')])).rejects.toThrow(
    'the disk says no',
  );
  expect(await keys()).toEqual([]);
});

test('listed oldest first, page by page, without those that are not whole', async () => {
  const made = [];
  for (const name of ['a', 'b', 'c']) made.push((await add(name)).id);
  await store.delete(datasetKey(TENANT, made[1]!));
  made.push((await add('d')).id);

  const first = await datasets.list(TENANT, { limit: 2 });
  expect(first.datasets.map(({ name }) => name)).toEqual(['a', 'c']);
  const second = await datasets.list(TENANT, { limit: 2, cursor: first.cursor! });
  expect(second).toMatchObject({ datasets: [{ name: 'd' }], cursor: null });
  expect(await datasets.list('other')).toEqual({ datasets: [], cursor: null });
});

test('deleted: gone with all files, the others stay', async () => {
  const [a, b] = [await add('a'), await add('b')];
  await datasets.delete(TENANT, a.id);
  expect(await datasets.get(TENANT, a.id)).toBeNull();
  expect((await datasets.list(TENANT)).datasets).toEqual([b]);
  expect((await keys()).every((key) => key.includes(b.id))).toBe(true);
});

test('a sweep removes what a dead process left, but neither a dataset nor an upload that goes on', async () => {
  const whole = await add('whole');
  const rest = newDatasetId();
  await store.put(datasetFileKey(TENANT, rest, 'images/001.png'), Buffer.from('x'), {
    contentType: 'image/png',
  });
  await datasets.sweep(TENANT);
  expect((await keys()).some((key) => key.includes(rest))).toBe(true);

  await datasets.sweep(TENANT, Date.now() + 25 * 3_600_000);
  expect((await keys()).some((key) => key.includes(rest))).toBe(false);
  expect(await datasets.get(TENANT, whole.id)).toEqual(whole);
});

test('an id carries its time', () => {
  const before = Date.now();
  expect(idTime(newDatasetId())).toBeGreaterThanOrEqual(before);
  expect(idTime(newDatasetId())).toBeLessThanOrEqual(Date.now());
});
