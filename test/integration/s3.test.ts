import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  Dataset,
  DatasetList,
  DatasetStore,
  GenerationJob,
  LoraRegistry,
  LoraVersionView,
  S3Store,
  createLogger,
  createObjectStore,
  createRedis,
  datasetKey,
  uploadArchiveKey,
} from '@atelier/shared';
import sharp from 'sharp';
import { StudioClient } from '../../apps/cli/src/client.ts';
import { sendDataset } from '../../apps/cli/src/commands/datasets.ts';
import { type GpuWorker, startGpuWorker } from '../../apps/gpu-worker/src/worker.ts';
import { type TestApi, expectJson, expectProblem, startTestApi, submit } from '../support/api.ts';
import { announced, complete, describeDatasetUploads, send } from '../support/dataset-uploads.ts';
import { emptyStore } from '../support/datasets.ts';
import { InstantEngine } from '../support/engines.ts';
import { writeSmallLora } from '../support/lora-files.ts';
import { type TestS3, canServeS3, startTestS3 } from '../support/s3.ts';
import { type ZipEntry, zip } from '../support/zip.ts';

const available = canServeS3();
if (!available) console.warn('The studio is NOT tested with S3: no versitygw, and no Go to build it with');

/** API and worker around a bucket, without any folder that they share. */
(available ? describe : describe.skip)('with S3', () => {
  let server: TestS3;
  let api: TestApi;
  let env: Record<string, string>;
  let dir: string;
  let worker: GpuWorker;
  let engine: InstantEngine;
  let redis: ReturnType<typeof createRedis>;
  beforeAll(async () => {
    server = await startTestS3();
    dir = await mkdtemp(join(tmpdir(), 'atelier-s3-worker-'));
    env = {
      ATELIER_STORE: 's3',
      S3_BUCKET: await server.bucket(),
      S3_ENDPOINT: server.endpoint,
      S3_FORCE_PATH_STYLE: 'true',
      S3_ACCESS_KEY_ID: server.credentials.accessKeyId,
      S3_SECRET_ACCESS_KEY: server.credentials.secretAccessKey,
    };
    api = await startTestApi(env);
    redis = createRedis(api.config, 'worker');
    engine = new InstantEngine();
    worker = await startGpuWorker({
      config: { ...api.config, ATELIER_CACHE_DIR: dir },
      redis,
      store: createObjectStore(api.config),
      catalog: api.deps.catalog,
      spawnEngine: () => engine,
      log: createLogger(api.config, 'gpu-worker'),
    });
  }, 300_000);
  afterAll(async () => {
    await worker.close(0);
    redis.disconnect();
    await api.close();
    await server.stop();
    await rm(dir, { recursive: true });
  });

  test('a LoRA goes from an import through a job to a download straight from the bucket', async () => {
    const bytes = await readFile(await writeSmallLora(join(dir, 'ink.safetensors')));
    const imported = await fetch(`${api.url}/v1/loras/ink`, { method: 'PUT', body: new Uint8Array(bytes) });
    const { sha256 } = await expectJson(imported, 201, LoraVersionView);

    const styles = [{ lora: 'ink', weight: 0.5 }];
    const response = await submit(api, { prompt: 'a', steps: 2, styles }, { Prefer: 'wait=30' });
    const job = await expectJson(response, 200, GenerationJob);
    expect(job.status).toBe('succeeded');
    const [style] = engine.requests[0]!.styles!;
    expect(style).toMatchObject({ key: `ink@1:${sha256}`, weight: 0.5 });
    expect((await readFile(style!.file)).equals(bytes)).toBe(true);

    const redirect = await fetch(`${api.url}/v1/loras/ink/file`, { redirect: 'manual' });
    expect(redirect.status).toBe(307);
    const url = redirect.headers.get('location')!;
    expect(url.startsWith(server.endpoint)).toBe(true);
    const head = await fetch(`${api.url}/v1/loras/ink/file`, { method: 'HEAD' });
    expect([head.status, head.headers.get('content-length')]).toEqual([200, String(bytes.length)]);
    const file = await fetch(url);
    expect(file.headers.get('content-disposition')).toBe('attachment; filename="ink@1.safetensors"');
    const downloaded = Buffer.from(await file.arrayBuffer());
    expect(createHash('sha256').update(downloaded).digest('hex')).toBe(sha256);
  });

  test('imports at once, a rename, a delete and a lost index come out as with a folder', async () => {
    const add = async (name: string, seed: number) => {
      const bytes = await readFile(await writeSmallLora(join(dir, `${seed}.safetensors`), { seed }));
      return fetch(`${api.url}/v1/loras/${name}`, { method: 'PUT', body: new Uint8Array(bytes) });
    };
    const statuses = await Promise.all([11, 12, 13].map(async (seed) => (await add('wash', seed)).status));
    expect(statuses).toEqual([201, 201, 201]);
    const loras = new LoraRegistry(api.deps.store, api.client, api.jobs);
    expect((await loras.get('default', 'wash'))!.versions.map(({ version }) => version)).toEqual([1, 2, 3]);
    await loras.update('default', 'wash', { name: 'sumi', tags: ['ink'] });
    await api.client.flushall();
    expect(await loras.get('default', 'wash')).toBeNull();
    expect(await loras.get('default', 'sumi')).toMatchObject({ tags: ['ink'], versions: [{}, {}, {}] });
    await loras.delete('default', 'sumi');
    expect((await api.deps.store.list('tenants/default/loras/sumi/')).objects).toHaveLength(1);
    expect((await add('sumi', 11)).headers.get('location')).toBe('/v1/loras/sumi/versions/4');
    expect(api.deps.store).toBeInstanceOf(S3Store);
  });

  test('datasets are uploaded, listed page by page, deleted and swept', async () => {
    const data = await sharp({ create: { width: 8, height: 8, channels: 3, background: 'red' } })
      .png()
      .toBuffer();
    const pair = [
      { name: 'images/1.png', data },
      { name: 'prompts/1.txt', data: 'red' },
    ];
    const upload = async (name: string, entries: ZipEntry[]) =>
      fetch(`${api.url}/v1/datasets?name=${name}`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/zip' },
        body: new Uint8Array(zip(entries)),
      });
    const made: Dataset[] = [];
    for (const name of ['a', 'b']) made.push(await expectJson(await upload(name, pair), 201, Dataset));
    await expectProblem(await upload('c', pair.slice(1)), 422, 'dataset_invalid');

    const page = async (query: string) =>
      expectJson(await fetch(`${api.url}/v1/datasets?limit=1${query}`), 200, DatasetList);
    const { data: first, next_cursor } = await page('');
    expect([first, (await page(`&cursor=${next_cursor}`)).data]).toMatchObject([
      [{ name: 'a' }],
      [{ name: 'b' }],
    ]);
    await fetch(`${api.url}/v1/datasets/${made[0]!.id}`, { method: 'DELETE' });
    await api.deps.store.delete(datasetKey('default', made[1]!.id));
    expect(await page('')).toEqual({ data: [], next_cursor: null });
    await new DatasetStore(api.deps.store).sweep('default', Date.now() + 25 * 3_600_000);
    expect((await api.deps.store.list('tenants/default/datasets/')).objects).toEqual([]);
  });

  describe('announced uploads', () => {
    beforeEach(() => emptyStore(api));
    describeDatasetUploads(() => api);

    test('go through the API where clients cannot reach the bucket', async () => {
      const inside = await startTestApi({ ...env, ATELIER_PRESIGNED_UPLOADS: 'false' });
      try {
        const upload = await announced(inside);
        expect(upload.url).toBe(`${inside.url}/v1/datasets/uploads/${upload.id}`);
        expect((await send(upload, Buffer.from('short'))).status).toBe(400);
        expect(await inside.store.head(uploadArchiveKey('default', upload.id))).toBeNull();
        expect((await send(upload)).status).toBe(200);
        await expectJson(await complete(inside, upload.id), 201, Dataset);
      } finally {
        await inside.close();
      }
    });

    test('are what the command line does with a large folder', async () => {
      const folder = join(import.meta.dirname, '../../examples/ink-wash');
      const made = await sendDataset(new StudioClient(api.url), folder, { json: true }, 1_000_000);
      expect(made).toMatchObject({ name: 'ink-wash', items: 200, warnings: [] });
      const [upload, ...rest] = (await api.store.list('tenants/default/uploads/')).objects;
      expect([upload!.key, rest]).toEqual([expect.stringMatching(/upload\.json$/), []]);
    });

    test('go to the bucket, not through the API, and no key goes along', async () => {
      const upload = await announced(api);
      expect(
        upload.url.startsWith(`${server.endpoint}/${api.config.S3_BUCKET}/tenants/default/uploads/`),
      ).toBe(true);
      expect(upload.headers).toEqual({ 'Content-Type': 'application/zip' });
      const url = upload.url.replace(upload.id, `upl_${'0'.repeat(32)}`);
      expect((await send({ ...upload, url })).status).toBe(403);
    });
  });
});
