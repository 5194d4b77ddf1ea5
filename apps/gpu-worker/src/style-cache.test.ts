import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { FolderStore, createWorkerMetrics, fileKey, versionKey } from '@atelier/shared';
import type { LoraVersion, StoredObject } from '@atelier/shared';
import { StyleCache } from './style-cache.ts';

const T = 'default';
const SIZE = 1_000;

/** A store that counts downloads of weights, and can be told to break one off. */
class CountingStore extends FolderStore {
  fetched: string[] = [];
  breaksOff = false;

  override async get(...args: Parameters<FolderStore['get']>): Promise<StoredObject | null> {
    const object = await super.get(...args);
    if (!object || !args[0].endsWith('.safetensors')) return object;
    this.fetched.push(args[0].split('/').slice(-3, -1).join('@'));
    if (!this.breaksOff) return object;
    object.body.destroy();
    const body = new Readable({
      read() {
        this.push(Buffer.alloc(100));
        this.destroy(new Error('connection reset'));
      },
    });
    return { ...object, body };
  }
}

let root: string;
let dir: string;
let store: CountingStore;
let metrics: ReturnType<typeof createWorkerMetrics>;
const { signal } = new AbortController();
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'atelier-styles-'));
  dir = join(root, 'loras');
  store = new CountingStore(join(root, 'store'));
  metrics = createWorkerMetrics();
});
afterEach(() => rm(root, { recursive: true }));

const cacheOf = (files: number) => new StyleCache({ dir, maxBytes: files * SIZE, store, metrics });
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const bytesOf = (letter: string): Buffer => Buffer.alloc(SIZE, letter);
const onDisk = async (): Promise<string[]> => (await readdir(dir)).sort();
const nameOf = (letter: string): string => `${sha256(bytesOf(letter))}.safetensors`;
const inOrder = (...letters: string[]): string[] => letters.map(nameOf).sort();

/** Stores version 1 of a LoRA named by a letter, its file full of that letter. */
async function publish(name: string, version = 1, letter = name): Promise<void> {
  const bytes = bytesOf(letter);
  const { etag } = await store.put(fileKey(T, name, version), bytes, {
    contentType: 'application/octet-stream',
  });
  const document: LoraVersion = {
    version,
    size: SIZE,
    sha256: sha256(bytes),
    etag,
    dialects: ['peft'],
    rank: { min: 1, max: 1 },
    modules: { transformer: 1, text_encoder: 0 },
    base_model: null,
    warnings: [],
    provenance: {
      source: 'import',
      filename: null,
      training_job: null,
      imported_at: new Date().toISOString(),
    },
  };
  await store.put(versionKey(T, name, version), Buffer.from(JSON.stringify(document)), {
    contentType: 'application/json',
  });
}
const pins = (...names: string[]) =>
  names.map((name) => ({ lora: name.includes('@') ? name : `${name}@1`, weight: 0.5 }));
async function use(cache: StyleCache, ...names: string[]): Promise<void> {
  const { release } = await cache.hold(T, pins(...names), signal);
  release();
}

test('gives each style its file, a key of its content and its weight; a second job fetches nothing', async () => {
  for (const name of ['a', 'b']) await publish(name);
  const cache = cacheOf(10);
  const { styles, release } = await cache.hold(T, pins('a', 'b'), signal);
  expect(styles).toEqual(
    ['a', 'b'].map((name) => ({
      file: join(dir, nameOf(name)),
      key: `${name}@1:${sha256(bytesOf(name))}`,
      weight: 0.5,
    })),
  );
  expect(await readFile(styles[0]!.file)).toEqual(bytesOf('a'));
  release();
  await use(cache, 'b', 'a');
  expect(store.fetched).toEqual(['a@1', 'b@1']);
  const text = await metrics.registry.metrics();
  expect(text).toContain('atelier_style_cache_total{result="miss"} 2');
  expect(text).toContain('atelier_style_cache_total{result="hit"} 2');
  expect(text).toContain('atelier_style_fetched_bytes_total 2000');
  expect(text).toContain('atelier_style_cache_bytes 2000');
});

test('fetches a file once for all who want it at the same time', async () => {
  await publish('a');
  const cache = cacheOf(10);
  await Promise.all(Array.from({ length: 8 }, () => use(cache, 'a')));
  expect(store.fetched).toEqual(['a@1']);
});

test('a name that stands for other bytes is fetched, the same bytes under another name are not', async () => {
  await publish('a');
  const cache = cacheOf(10);
  await use(cache, 'a');
  await publish('a', 1, 'x');
  await publish('copy', 1, 'a');
  const { styles, release } = await cache.hold(T, pins('a', 'copy'), signal);
  expect(await Promise.all(styles.map(({ file }) => readFile(file)))).toEqual([bytesOf('x'), bytesOf('a')]);
  expect(store.fetched).toEqual(['a@1', 'a@1']);
  release();
});

test('evicts the file that was not used for longest, never one in use', async () => {
  for (const name of ['a', 'b', 'c', 'd']) await publish(name);
  const cache = cacheOf(2);
  await use(cache, 'a');
  await use(cache, 'b');
  await use(cache, 'a');
  await use(cache, 'c');
  expect(await onDisk()).toEqual(inOrder('a', 'c'));

  const { release } = await cache.hold(T, pins('a', 'b', 'c', 'd'), signal);
  expect(await onDisk()).toEqual(inOrder('a', 'b', 'c', 'd'));
  release();
  expect(await onDisk()).toEqual(inOrder('c', 'd'));
  expect(await metrics.registry.metrics()).toContain('atelier_style_cache_bytes 2000');
});

test('a file larger than the cache serves its job and goes', async () => {
  await publish('a');
  const cache = cacheOf(0);
  const { styles, release } = await cache.hold(T, pins('a'), signal);
  expect(await readFile(styles[0]!.file)).toEqual(bytesOf('a'));
  release();
  expect(await onDisk()).toEqual([]);
});

test('a file that vanished or was damaged is fetched again', async () => {
  await publish('a');
  const cache = cacheOf(10);
  await use(cache, 'a');
  const path = join(dir, nameOf('a'));
  await rm(path);
  await use(cache, 'a');
  await writeFile(path, bytesOf('y'));
  // The clock of a file system may not have moved since the file was fetched.
  await utimes(path, new Date(), new Date(Date.now() + 5_000));
  await use(cache, 'a');
  await writeFile(path, 'short');
  await use(cache, 'a');
  expect(await readFile(path)).toEqual(bytesOf('a'));
  expect(store.fetched).toHaveLength(4);
});

test('takes over the files of an earlier process, hashing each before its first use', async () => {
  for (const name of ['a', 'b', 'c']) await publish(name);
  await mkdir(dir);
  for (const [name, content, age] of [
    ['a', 'a', 60],
    ['b', 'y', 30],
  ] as const) {
    await writeFile(join(dir, nameOf(name)), bytesOf(content));
    const at = new Date(Date.now() - age * 1_000);
    await utimes(join(dir, nameOf(name)), at, at);
  }
  const abandoned = join(dir, 'x.part');
  await writeFile(abandoned, 'half');
  await utimes(abandoned, new Date(0), new Date(0));
  await writeFile(join(dir, 'young.part'), 'half');

  const cache = cacheOf(2);
  await use(cache, 'b');
  expect(store.fetched).toEqual(['b@1']);
  await use(cache, 'c');
  expect(await onDisk()).toEqual([...inOrder('b', 'c'), 'young.part'].sort());
});

test('a LoRA that is not there, and a stored file that is not what was imported, are the job’s end', async () => {
  const cache = cacheOf(10);
  const missing = { code: 'unknown_lora', retryable: false };
  await expect(cache.hold(T, pins('a'), signal)).rejects.toMatchObject(missing);
  await publish('a');
  await expect(cache.hold('other', pins('a'), signal)).rejects.toMatchObject(missing);
  await expect(cache.hold(T, pins('a@2'), signal)).rejects.toMatchObject(missing);
  await expect(cache.hold(T, [{ lora: 'a', weight: 1 }], signal)).rejects.toMatchObject(missing);
  await store.put(fileKey(T, 'a', 1), bytesOf('z'), { contentType: 'application/octet-stream' });
  await expect(cache.hold(T, pins('a'), signal)).rejects.toMatchObject({
    code: 'lora_invalid',
    retryable: false,
  });
  await store.delete(fileKey(T, 'a', 1));
  await expect(cache.hold(T, pins('a'), signal)).rejects.toMatchObject(missing);
  expect(await onDisk()).toEqual([]);
});

test('a download that breaks off is the store’s outage; a canceled job stops it; neither leaves a file', async () => {
  await publish('a');
  const cache = cacheOf(10);
  store.breaksOff = true;
  await expect(cache.hold(T, pins('a'), signal)).rejects.toMatchObject({ code: 'store_unavailable' });
  store.breaksOff = false;
  const canceled = AbortSignal.abort();
  await expect(cache.hold(T, pins('a'), canceled)).rejects.toThrow('aborted');
  expect(await onDisk()).toEqual([]);
  await use(cache, 'a');
  expect(await onDisk()).toEqual(inOrder('a'));
});
