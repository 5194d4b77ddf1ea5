import { createHash, randomBytes } from 'node:crypto';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ObjectStore } from './types.ts';

/**
 * What every object store promises, as jest tests. `create` makes an empty store before each test; `dispose` ends it.
 */
export function describeObjectStore(
  name: string,
  create: () => Promise<{ store: ObjectStore; dispose: () => Promise<void> }>,
): void {
  describe(name, () => {
    let store: ObjectStore;
    let dispose: () => Promise<void>;
    beforeEach(async () => {
      ({ store, dispose } = await create());
    });
    afterEach(() => dispose());

    const text = { contentType: 'text/plain' };
    const read = async (key: string): Promise<string | null> => {
      const object = await store.get(key);
      return object && (await buffer(object.body)).toString();
    };
    const put = (key: string, body: string, options = {}): Promise<{ etag: string; size: number }> =>
      store.put(key, Buffer.from(body), { ...text, ...options });

    test('gives back bytes, size, content type and etag', async () => {
      const body = randomBytes(70_000);
      const { etag, size } = await store.put('a/b/picture.bin', body, { contentType: 'image/png' });
      expect(size).toBe(70_000);
      const object = (await store.get('a/b/picture.bin'))!;
      expect((await buffer(object.body)).equals(body)).toBe(true);
      const info = { key: 'a/b/picture.bin', size: 70_000, contentType: 'image/png', etag };
      expect(object).toMatchObject(info);
      expect(await store.head('a/b/picture.bin')).toMatchObject(info);
      expect(Math.abs(object.modifiedAt.getTime() - Date.now())).toBeLessThan(60_000);
    });

    test('takes a stream of unknown length, larger than one part of a multipart upload', async () => {
      const part = randomBytes(1 << 20);
      const { size } = await store.put('big.bin', Readable.from(Array.from({ length: 12 }, () => part)), {
        contentType: 'application/octet-stream',
      });
      expect(size).toBe(12 << 20);
      const stored = await buffer((await store.get('big.bin'))!.body);
      const expected = createHash('sha256');
      for (let i = 0; i < 12; i++) expected.update(part);
      expect(createHash('sha256').update(stored).digest('hex')).toBe(expected.digest('hex'));
    });

    test('an empty object is an object', async () => {
      await put('empty.txt', '');
      expect(await store.head('empty.txt')).toMatchObject({ size: 0 });
      expect(await read('empty.txt')).toBe('');
    });

    test('what is not there is null, and deleting it is no error', async () => {
      expect(await store.get('none/there')).toBeNull();
      expect(await store.head('none/there')).toBeNull();
      await put('a', 'x');
      expect(await store.head('a/below-an-object')).toBeNull();
      await store.delete('none/there');
      await store.delete('a');
      expect(await store.head('a')).toBeNull();
    });

    test('reads ranges', async () => {
      await put('digits.txt', '0123456789');
      const part = async (range: { start: number; end?: number }) => {
        const object = (await store.get('digits.txt', { range }))!;
        return [(await buffer(object.body)).toString(), object.range, object.size];
      };
      expect(await part({ start: 2, end: 4 })).toEqual(['234', { start: 2, end: 4 }, 10]);
      expect(await part({ start: 7 })).toEqual(['789', { start: 7, end: 9 }, 10]);
      expect(await part({ start: 8, end: 99 })).toEqual(['89', { start: 8, end: 9 }, 10]);
      await expect(store.get('digits.txt', { range: { start: 10 } })).rejects.toMatchObject({
        code: 'validation_failed',
      });
    });

    test('a put replaces the whole object, its type and its etag', async () => {
      const first = await store.put('o', Buffer.from('long first body'), { contentType: 'image/png' });
      const second = await store.put('o', Buffer.from('second'), { contentType: 'image/webp' });
      expect(second.etag).not.toBe(first.etag);
      expect(await store.head('o')).toMatchObject({ size: 6, contentType: 'image/webp' });
      expect(await read('o')).toBe('second');
    });

    test('of 20 conditional puts at once exactly one wins, and a later one is refused', async () => {
      const puts = await Promise.allSettled(
        Array.from({ length: 20 }, (_, i) => put('once.txt', `writer ${i}`, { ifNoneMatch: '*' })),
      );
      const winner = puts.findIndex(({ status }) => status === 'fulfilled');
      expect(puts.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
      for (const result of puts)
        if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'conflict' });
      await expect(put('once.txt', 'late', { ifNoneMatch: '*' })).rejects.toMatchObject({ code: 'conflict' });
      expect(await read('once.txt')).toBe(`writer ${winner}`);
    });

    test('a conditional put of many parts is refused as a whole', async () => {
      const big = () => Readable.from(Array.from({ length: 12 }, () => Buffer.alloc(1 << 20, 'x')));
      await put('taken.bin', 'first');
      const late = store.put('taken.bin', big(), { ...text, ifNoneMatch: '*' });
      await expect(late).rejects.toMatchObject({ code: 'conflict' });
      expect(await read('taken.bin')).toBe('first');
      await store.put('free.bin', big(), { ...text, ifNoneMatch: '*' });
      expect(await store.head('free.bin')).toMatchObject({ size: 12 << 20 });
    });

    test('copies bytes and type over what was there', async () => {
      await store.put('a/from@1.png', Buffer.from('png'), { contentType: 'image/avif' });
      await put('b/to', 'before');
      expect(await store.copy('a/from@1.png', 'b/to')).toBe(true);
      expect(await read('b/to')).toBe('png');
      expect(await store.head('b/to')).toMatchObject({ size: 3, contentType: 'image/avif' });
      await store.delete('a/from@1.png');
      expect(await store.head('b/to')).toMatchObject({ contentType: 'image/avif' });
      expect(await store.copy('a/from@1.png', 'b/to')).toBe(false);
      expect(await read('b/to')).toBe('png');
    });

    test('a presigned URL, where there are some, gives the bytes to anybody for a while', async () => {
      await put('a/b@1.txt', 'for anybody');
      const url = await store.presignGet?.('a/b@1.txt', { seconds: 1, filename: 'b.txt' });
      if (url === undefined) return;
      const response = await fetch(url);
      expect([response.status, await response.text()]).toEqual([200, 'for anybody']);
      expect(response.headers.get('content-disposition')).toBe('attachment; filename="b.txt"');
      expect((await fetch(url.replace('b%401', 'c%401').replace('b@1', 'c@1'))).status).toBe(403);
      await sleep(2_100);
      expect((await fetch(url)).status).toBe(403);
    });

    test('a presigned PUT, where there is one, stores what it was signed for and nothing else', async () => {
      const body = 'twelve bytes';
      const options = { seconds: 2, size: body.length, contentType: 'application/zip' };
      const signed = await store.presignPut?.('in/a@1.zip', options);
      if (signed === undefined) return;
      const { url, headers } = signed;
      const send = async (to: string, sent: string, more = {}) =>
        (await fetch(to, { method: 'PUT', body: sent, headers: { ...headers, ...more } })).status;
      expect(await send(url, `${body}!`)).toBe(403);
      expect(await send(url, body.slice(1))).toBe(403);
      expect(await send(url, body, { 'Content-Type': 'text/html' })).toBe(403);
      expect(await send(url.replace(/a(%40|@)1/, 'b$11'), body)).toBe(403);
      expect((await store.list('in/')).objects).toEqual([]);
      expect(await send(url, body)).toBe(200);
      expect(await store.head('in/a@1.zip')).toMatchObject({ size: 12, contentType: 'application/zip' });
      expect(await read('in/a@1.zip')).toBe(body);
      await sleep(3_100);
      expect(await send(url, body)).toBe(403);
      const tooLarge = store.presignPut!('in/b', { ...options, size: 5 * 2 ** 30 + 1 });
      await expect(tooLarge).rejects.toMatchObject({ code: 'payload_too_large' });
    });

    test('a stream that fails leaves what was there, and its own error comes out', async () => {
      await put('kept.txt', 'before');
      const failing = (chunks: number): Readable =>
        new Readable({
          read() {
            if (chunks-- > 0) this.push(Buffer.alloc(100_000));
            else this.destroy(new Error('the client went away'));
          },
        });
      await expect(store.put('kept.txt', failing(1), text)).rejects.toThrow('the client went away');
      expect(await read('kept.txt')).toBe('before');
      await expect(store.put('never.txt', failing(0), text)).rejects.toThrow('the client went away');
      expect(await store.head('never.txt')).toBeNull();
    });

    test('readers see a whole object while it is replaced over and over', async () => {
      const bodies = ['a', 'b'].map((letter) => letter.repeat(50_000));
      await put('busy.txt', bodies[0]!);
      const state = { writing: true };
      const writer = (async () => {
        for (let i = 0; i < 30; i++) await put('busy.txt', bodies[i % 2]!);
        state.writing = false;
      })();
      const seen = new Set<string | null>();
      while (state.writing) seen.add(await read('busy.txt'));
      await writer;
      for (const body of seen) expect(bodies).toContain(body);
    });

    test('lists by prefix in order of key, page by page, each object once', async () => {
      const keys = ['p/a-b', 'p/a/1', 'p/a/2', 'p/a0', 'p/b', 'p/b.c/d', 'q/1', 'pq'];
      for (const key of keys) await put(key, key);
      const pages: string[][] = [];
      let cursor: string | undefined;
      do {
        const page = await store.list('p/', { limit: 2, ...(cursor === undefined ? {} : { cursor }) });
        pages.push(page.objects.map(({ key }) => key));
        cursor = page.cursor;
      } while (cursor !== undefined);
      const expected = keys.filter((key) => key.startsWith('p/')).sort();
      expect(pages.flat()).toEqual(expected);
      expect(pages).toHaveLength(3);
      expect((await store.list('p/a')).objects.map(({ key }) => key)).toEqual([
        'p/a-b',
        'p/a/1',
        'p/a/2',
        'p/a0',
      ]);
      // A cursor need not be a key that exists.
      const jumped = await store.list('p/', { cursor: 'p/a0~', limit: 1 });
      expect(jumped.objects.map(({ key }) => key)).toEqual(['p/b']);
      expect((await store.list('')).objects).toHaveLength(keys.length);
      expect(await store.list('nothing/')).toEqual({ objects: [] });
      expect((await store.list('p/b.c')).objects[0]).toMatchObject({ size: 7, contentType: 'text/plain' });
    });

    test.each([
      '',
      '/',
      'a//b',
      '/a',
      'a/',
      '../a',
      'a/../b',
      'a/.',
      'a\\b',
      'a\0b',
      'ä',
      'a b',
      'a'.repeat(513),
    ])('refuses the key %j', async (key) => {
      const refused = { code: 'validation_failed' };
      await expect(put(key, 'x')).rejects.toMatchObject(refused);
      await expect(store.get(key)).rejects.toMatchObject(refused);
      await expect(store.head(key)).rejects.toMatchObject(refused);
      await expect(store.delete(key)).rejects.toMatchObject(refused);
    });

    test.each(['../', '/', 'a/../', 'a b'])('refuses the prefix %j', async (prefix) => {
      await expect(store.list(prefix)).rejects.toMatchObject({ code: 'validation_failed' });
    });

    test('answers a ping', async () => {
      await expect(store.ping()).resolves.toBeUndefined();
    });
  });
}
