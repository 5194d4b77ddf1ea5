import { cp, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { describeObjectStore } from './conformance.ts';
import { FolderStore } from './folder-store.ts';

const folder = (): Promise<string> => mkdtemp(join(tmpdir(), 'atelier-store-'));

describeObjectStore('FolderStore', async () => {
  const root = await folder();
  return { store: new FolderStore(root), dispose: () => rm(root, { recursive: true }) };
});

describe('the folder behind a FolderStore', () => {
  let root: string;
  let store: FolderStore;
  beforeEach(async () => {
    root = await folder();
    store = new FolderStore(root);
  });
  afterEach(() => rm(root, { recursive: true, force: true }));

  test('keeps each object as a plain file under its key, and nothing else behind', async () => {
    await store.put('tenants/default/cat.png', Buffer.from('png'), { contentType: 'image/png' });
    await store.put('tenants/default/odd', Buffer.from('x'), { contentType: 'image/avif' });
    const failing = Readable.from(
      (async function* () {
        yield 'x';
        throw new Error('gone');
      })(),
    );
    await expect(store.put('failed', failing, { contentType: 'text/plain' })).rejects.toThrow('gone');
    expect(await readdir(join(root, 'objects/tenants/default'))).toEqual(['cat.png', 'odd']);
    expect(await readdir(join(root, 'incoming'))).toEqual([]);
    expect(await readdir(join(root, 'types'))).toHaveLength(1);

    await store.delete('tenants/default/cat.png');
    await store.delete('tenants/default/odd');
    expect(await readdir(join(root, 'objects'))).toEqual([]);
    expect(await readdir(join(root, 'types'))).toEqual([]);
  });

  test('objects survive a copy of the folder', async () => {
    await store.put('a/cat.png', Buffer.from('png'), { contentType: 'image/png' });
    await cp(root, `${root}-copy`, { recursive: true });
    const copy = new FolderStore(`${root}-copy`);
    expect(await copy.head('a/cat.png')).toMatchObject({ size: 3, contentType: 'image/png' });
    await rm(`${root}-copy`, { recursive: true });
  });

  test('deletes and puts in one folder at once do not meet', async () => {
    await Promise.all(
      Array.from({ length: 40 }, async (_, i) => {
        await store.put(`shared/${i}`, Buffer.from('x'), { contentType: 'text/plain' });
        if (i % 2 === 0) await store.delete(`shared/${i}`);
      }),
    );
    expect((await store.list('shared/')).objects).toHaveLength(20);
  });

  test('says conflict for a key below another object, store_unavailable while the folder is away', async () => {
    const text = { contentType: 'text/plain' };
    await store.put('a', Buffer.from('x'), text);
    await expect(store.put('a/b', Buffer.from('x'), text)).rejects.toMatchObject({ code: 'conflict' });

    await rename(root, `${root}-away`);
    await writeFile(root, 'a file where the folder was');
    await expect(store.ping()).rejects.toMatchObject({ code: 'store_unavailable', cause: expect.anything() });
    await expect(store.put('b', Buffer.from('x'), text)).rejects.toMatchObject({ code: 'store_unavailable' });
    await rm(root);
    await rename(`${root}-away`, root);
    await expect(store.ping()).resolves.toBeUndefined();
    expect(await store.head('a')).toMatchObject({ size: 1 });
  });
});
