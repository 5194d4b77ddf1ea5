import { createHash, randomUUID } from 'node:crypto';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import type { Redis } from 'ioredis';
import { type TestRedis, startTestRedis } from '../../../../test/support/redis.ts';
import type { GenerationInput } from '../contracts/generation.ts';
import { newAttemptToken } from '../ids.ts';
import { JobStore } from '../jobs/job-store.ts';
import { FolderStore } from '../object-store/folder-store.ts';
import { createRedis } from '../redis.ts';
import { fileKey, settingsKey, tombstoneKey, versionKey } from './names.ts';
import { LoraRegistry } from './registry.ts';

const T = 'default';

let server: TestRedis;
let redis: Redis;
let dir: string;
let store: FolderStore;
let jobs: JobStore;
let registry: LoraRegistry;
let problems: string[];
beforeAll(async () => {
  server = await startTestRedis();
  redis = createRedis({ REDIS_URL: server.url }, 'worker');
});
afterAll(async () => {
  redis.disconnect();
  await server.stop();
});
beforeEach(async () => {
  await redis.flushall();
  dir = await mkdtemp(join(tmpdir(), 'atelier-loras-'));
  store = new FolderStore(join(dir, 'store'));
  jobs = new JobStore(redis);
  problems = [];
  registry = newRegistry();
});
afterEach(async () => {
  jobs.close();
  await rm(dir, { recursive: true });
});

const newRegistry = (): LoraRegistry =>
  new LoraRegistry(store, redis, jobs, (found) => problems.push(...found));

/** A file as the API hands it over; what is in it does not matter here. */
async function file(content: string) {
  const path = join(dir, randomUUID());
  await writeFile(path, content);
  return {
    path,
    size: content.length,
    sha256: createHash('sha256').update(content).digest('hex'),
    dialects: ['peft'],
    rank: { min: 4, max: 4 },
    modules: { transformer: 2, text_encoder: 0 },
    base_model: 'mini',
    warnings: [],
    provenance: { source: 'import' as const, filename: 'ink.safetensors', training_job: null },
  };
}

const add = async (name: string, content: string, tenant = T) =>
  registry.add(tenant, name, await file(content));
const stored = async (name: string, version: number, tenant = T): Promise<string | null> => {
  const object = await store.get(fileKey(tenant, name, version));
  return object && (await buffer(object.body)).toString();
};
const keys = async (): Promise<string[]> => (await store.list('')).objects.map(({ key }) => key);
const versionsOf = async (name: string): Promise<number[] | undefined> =>
  (await registry.get(T, name))?.versions.map(({ version }) => version);

const jobWith = (lora: string, tenant = T) =>
  jobs.create({
    kind: 'generation',
    tenant,
    input: { prompt: 'a', steps: 2, count: 1, styles: [{ lora, weight: 1 }] } as unknown as GenerationInput,
  });

describe('versions', () => {
  test('each new content is the next version; the latest again is none', async () => {
    expect(await add('ink', 'one')).toMatchObject({ created: true, version: { version: 1 } });
    expect(await add('ink', 'two')).toMatchObject({ created: true, version: { version: 2 } });
    expect(await add('ink', 'two')).toMatchObject({ created: false, version: { version: 2 } });
    // Going back is a new version: the bare name stands for it.
    expect(await add('ink', 'one')).toMatchObject({ created: true, version: { version: 3 } });
    expect(await registry.get(T, 'ink')).toMatchObject({
      default_weight: 1,
      versions: [{ version: 1 }, { version: 2 }, { version: 3, provenance: { filename: 'ink.safetensors' } }],
    });
    expect([await stored('ink', 1), await stored('ink', 2)]).toEqual(['one', 'two']);
  });

  test('of ten imports at once each gets a number of its own and keeps its bytes', async () => {
    const contents = Array.from({ length: 10 }, (_, i) => `content ${i}`);
    const results = await Promise.all(contents.map((content) => add('ink', content)));
    expect(results.map(({ version }) => version.version).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 10 }, (_, i) => i + 1),
    );
    for (const [i, { version }] of results.entries())
      expect(await stored('ink', version.version)).toBe(contents[i]);
  });

  test('also when Redis forgets the lock between them', async () => {
    const forgetting = setInterval(() => void redis.flushall(), 1);
    try {
      const contents = Array.from({ length: 8 }, (_, i) => `content ${i}`);
      const results = await Promise.all(contents.map((content) => add('ink', content)));
      expect(new Set(results.map(({ version }) => version.version)).size).toBe(8);
      for (const [i, { version }] of results.entries())
        expect(await stored('ink', version.version)).toBe(contents[i]);
    } finally {
      clearInterval(forgetting);
    }
  });

  test('an import that died before its document leaves no version, and its number is skipped', async () => {
    await add('ink', 'one');
    await store.put(fileKey(T, 'ink', 2), Buffer.from('half'), { contentType: 'application/octet-stream' });
    await registry.rebuild(T);
    expect(await versionsOf('ink')).toEqual([1]);
    expect(await add('ink', 'two')).toMatchObject({ version: { version: 3 } });
  });

  test('a document that is broken hides its version only, and is reported', async () => {
    await add('ink', 'one');
    await add('ink', 'two');
    await store.put(versionKey(T, 'ink', 1), Buffer.from('{"version": 1'), {
      contentType: 'application/json',
    });
    await registry.rebuild(T);
    expect(await versionsOf('ink')).toEqual([2]);
    expect(problems.join()).toContain('loras/ink/1/version.json');
  });
});

describe('the index', () => {
  test('is rebuilt from the objects when Redis has lost it', async () => {
    await add('ink', 'one');
    await add('paper', 'two');
    await registry.update(T, 'ink', { description: 'black', tags: ['wash'], default_weight: 0.6 });
    const before = await registry.list(T);
    await redis.flushall();
    expect(await newRegistry().list(T)).toEqual(before);
    await redis.flushall();
    expect(await newRegistry().get(T, 'ink')).toMatchObject({ description: 'black', default_weight: 0.6 });
  });

  test('loses at a rebuild what is no longer in the store, and finds what was copied there', async () => {
    await add('ink', 'one');
    const copy = async (from: string, to: string) => {
      expect(await store.copy(from, to)).toBe(true);
      await store.delete(from);
    };
    await copy(fileKey(T, 'ink', 1), fileKey(T, 'wash', 1));
    await copy(versionKey(T, 'ink', 1), versionKey(T, 'wash', 1));
    await store.delete(settingsKey(T, 'ink'));
    await registry.rebuild(T);
    expect(await registry.names(T)).toEqual(['wash']);
    expect(await registry.get(T, 'wash')).toMatchObject({ default_weight: 1, tags: [] });
  });

  test('is whole after a rebuild during which Redis lost it', async () => {
    for (const name of ['a', 'b', 'c']) await add(name, name);
    let flushes = 0;
    class Interrupted extends FolderStore {
      override async list(...args: Parameters<FolderStore['list']>) {
        if (args[0].endsWith('/b/') && flushes++ === 0) await redis.flushall();
        return super.list(...args);
      }
    }
    await redis.flushall();
    const interrupted = new LoraRegistry(new Interrupted(join(dir, 'store')), redis, jobs);
    expect(await interrupted.names(T)).toEqual(['a', 'b', 'c']);
    expect(flushes).toBe(2);
  });

  test('is rebuilt after a delete that could not be finished', async () => {
    await add('ink', 'one');
    expect(await registry.names(T)).toEqual(['ink']);
    const root = join(dir, 'store');
    class Failing extends FolderStore {
      override async put(): Promise<never> {
        await rename(root, `${root}-away`);
        await writeFile(root, '');
        throw new Error('the store broke');
      }
    }
    const failing = new LoraRegistry(new Failing(root), redis, jobs);
    await expect(failing.delete(T, 'ink')).rejects.toMatchObject({ code: 'store_unavailable' });
    await rm(root);
    await rename(`${root}-away`, root);
    expect(await registry.names(T)).toEqual(['ink']);
  });

  test('is not made from a store that is away', async () => {
    await add('ink', 'one');
    const root = join(dir, 'store');
    await rename(root, `${root}-away`);
    await writeFile(root, '');
    await redis.flushall();
    await expect(registry.names(T)).rejects.toMatchObject({ code: 'store_unavailable' });
    await rm(root);
    await rename(`${root}-away`, root);
    expect(await registry.names(T)).toEqual(['ink']);
  });

  test('pages in order of name, also through a tag', async () => {
    for (const name of ['c', 'a', 'e', 'b', 'd']) await add(name, name);
    for (const name of ['a', 'c', 'e']) await registry.update(T, name, { tags: ['odd'] });
    const first = await registry.list(T, { limit: 2 });
    expect(first.records.map(({ name }) => name)).toEqual(['a', 'b']);
    const rest = await registry.list(T, { limit: 3, cursor: first.cursor! });
    expect([rest.records.map(({ name }) => name), rest.cursor]).toEqual([['c', 'd', 'e'], null]);
    const odd = await registry.list(T, { limit: 2, tag: 'odd' });
    expect([odd.records.map(({ name }) => name), odd.cursor]).toEqual([['a', 'c'], 'c']);
  });
});

test('two tenants do not see each other', async () => {
  await add('ink', 'mine');
  await add('ink', 'yours', 'other');
  await add('only-other', 'x', 'other');
  await jobWith('ink@1', 'other');
  expect(await registry.names(T)).toEqual(['ink']);
  expect(await registry.get(T, 'only-other')).toBeNull();
  await registry.delete(T, 'ink');
  expect(await registry.names('other')).toEqual(['ink', 'only-other']);
  expect(await stored('ink', 1, 'other')).toBe('yours');
  await expect(registry.get('a/b', 'ink')).rejects.toThrow(RangeError);
});

describe('delete', () => {
  test('leaves nothing but the number, which is not used again', async () => {
    await add('ink', 'one');
    await add('ink', 'two');
    await registry.delete(T, 'ink');
    expect(await registry.get(T, 'ink')).toBeNull();
    expect(await keys()).toEqual([tombstoneKey(T, 'ink')]);
    await expect(registry.delete(T, 'ink')).rejects.toMatchObject({ code: 'not_found' });
    expect(await add('ink', 'two')).toMatchObject({ created: true, version: { version: 3 } });
    expect(await versionsOf('ink')).toEqual([3]);
  });

  test('that died after its tombstone is a delete', async () => {
    await add('ink', 'one');
    const tombstone = { last_version: 1, deleted_at: new Date().toISOString() };
    await store.put(tombstoneKey(T, 'ink'), Buffer.from(JSON.stringify(tombstone)), {
      contentType: 'application/json',
    });
    await registry.rebuild(T);
    expect(await registry.names(T)).toEqual([]);
    expect(await add('ink', 'one')).toMatchObject({ version: { version: 2 } });
  });

  test('is refused while a job that has not ended uses any version', async () => {
    await add('ink', 'one');
    await add('ink-wash', 'other');
    await add('ink', 'two');
    const job = await jobWith('ink@1');
    for (const change of [registry.delete(T, 'ink'), registry.update(T, 'ink', { name: 'sumi' })])
      await expect(change).rejects.toMatchObject({
        code: 'lora_in_use',
        message: expect.stringContaining(job.id),
      });
    expect(await versionsOf('ink')).toEqual([1, 2]);
    const attempt = { ...job, token: newAttemptToken() };
    await jobs.start(attempt, 'worker');
    await expect(registry.delete(T, 'ink')).rejects.toMatchObject({ code: 'lora_in_use' });
    await registry.delete(T, 'ink-wash');
    await registry.update(T, 'ink', { default_weight: 0.5 });
    await jobs.fail(attempt, { code: 'engine_failed', message: 'no', retryable: false });
    await registry.delete(T, 'ink');
    expect(await registry.names(T)).toEqual([]);
  });
});

describe('rename', () => {
  test('moves all versions and settings; the old name is gone', async () => {
    await add('ink', 'one');
    await add('ink', 'two');
    const before = (await registry.get(T, 'ink'))!;
    const renamed = await registry.update(T, 'ink', { name: 'sumi', description: 'black' });
    expect(renamed).toMatchObject({ name: 'sumi', description: 'black', created_at: before.created_at });
    expect(renamed.versions.map(({ sha256 }) => sha256)).toEqual(before.versions.map(({ sha256 }) => sha256));
    expect(await registry.names(T)).toEqual(['sumi']);
    expect([await stored('sumi', 1), await stored('sumi', 2)]).toEqual(['one', 'two']);
    for (const { version, etag } of renamed.versions)
      expect(await store.head(fileKey(T, 'sumi', version))).toMatchObject({ etag });
    expect(await add('ink', 'three')).toMatchObject({ version: { version: 3 } });
  });

  test('to a name that is taken changes nothing', async () => {
    await add('ink', 'one');
    await add('paper', 'two');
    await expect(registry.update(T, 'ink', { name: 'paper' })).rejects.toMatchObject({
      code: 'conflict',
      errors: [{ field: 'name', message: 'paper is taken' }],
    });
    expect(await registry.names(T)).toEqual(['ink', 'paper']);
    expect(await stored('paper', 1)).toBe('two');
  });

  test('that died halfway shows the old name only, and can be done again', async () => {
    await add('ink', 'one');
    await add('ink', 'two');
    class Dying extends FolderStore {
      copies = 0;
      override copy(from: string, to: string): Promise<boolean> {
        if (++this.copies === 2) throw new Error('the process died');
        return super.copy(from, to);
      }
    }
    const dying = new LoraRegistry(new Dying(join(dir, 'store')), redis, jobs);
    await expect(dying.update(T, 'ink', { name: 'sumi' })).rejects.toThrow('the process died');
    await redis.flushall();
    expect(await registry.names(T)).toEqual(['ink']);
    await expect(add('sumi', 'three')).rejects.toMatchObject({ code: 'conflict' });
    await registry.update(T, 'ink', { name: 'sumi' });
    expect(await registry.names(T)).toEqual(['sumi']);
    expect(await versionsOf('sumi')).toEqual([1, 2]);
  });

  test('two at once to one name: one wins', async () => {
    await add('a', 'one');
    await add('b', 'two');
    const renames = await Promise.allSettled(
      ['a', 'b'].map((name) => registry.update(T, name, { name: 'c' })),
    );
    expect(renames.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    expect((await registry.names(T)).length).toBe(2);
  });
});
