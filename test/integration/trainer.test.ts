import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { EngineProcess } from '@atelier/flux';
import {
  Catalog,
  DatasetStore,
  type JobRecord,
  type JobRef,
  TrainingInput,
  TrainingMetrics,
  createLogger,
  createRedis,
  listWorkers,
  trainingMetricsKey,
  trainingPrefix,
  trainingSampleKey,
} from '@atelier/shared';
import sharp from 'sharp';
import { type Trainer, startTrainer } from '../../apps/trainer/src/trainer.ts';
import { tinyModel } from '../golden/support.ts';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

const T = 'default';
const GRACE_MS = 20_000;

/** Trainers with the real engine on a tiny model. */
let studio: TestStudio;
let catalog: Catalog;
let dataset: string;
let client: ReturnType<typeof createRedis>;
beforeAll(async () => {
  studio = await startTestStudio();
  client = createRedis(studio.config, 'worker');
  const { files } = await tinyModel('tiny-dev');
  const defaults = { ...studio.catalog.default.defaults, width: 64, height: 64, max_sequence_length: 16 };
  catalog = new Catalog([{ ...studio.catalog.default, name: 'tiny-dev', files, defaults }]);
  dataset = await store(4);
});
afterAll(async () => {
  client.disconnect();
  await studio.stop();
});

/** Stores a dataset of `count` pictures; the last one is no picture when `broken`. @returns its id */
async function store(count: number, broken = false): Promise<string> {
  const files: [path: string, bytes: Buffer][] = [];
  for (let i = 1; i <= count; i++) {
    const background = { r: 50 * i, g: 255 - 40 * i, b: 90 };
    const image = sharp({ create: { width: 64 + 8 * i, height: 72, channels: 3, background } });
    const bytes = broken && i === count ? Buffer.from('no picture') : await image.png().toBuffer();
    files.push([`images/00${i}.png`, bytes], [`prompts/00${i}.txt`, Buffer.from(`picture ${i}`)]);
  }
  const { id } = await new DatasetStore(studio.store).add(T, {
    name: 'test',
    warnings: [],
    files: files.map(([path, bytes]) => ({
      file: { path, size: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') },
      contentType: 'application/octet-stream',
      read: async () => bytes,
    })),
  });
  return id;
}

async function submit(input: Partial<TrainingInput> & { name: string }): Promise<JobRecord> {
  const small = { batch_size: 1, gradient_accumulation_steps: 1, learning_rate: 1e-2, max_epochs: 2 };
  const rest = { dataset, model: 'tiny-dev', resolution: 64, save_every_n_epochs: 1 };
  const record = await studio.jobs.create({
    kind: 'training',
    input: TrainingInput.parse({ ...small, ...rest, ...input }),
  });
  await studio.queues.enqueueTraining(record);
  return record;
}

async function withTrainer<T>(
  work: (trainer: Trainer) => Promise<T>,
  spawnEngine = (onLog: (line: string) => void) => EngineProcess.spawn({ onLog }),
): Promise<T> {
  const config = {
    ...studio.config,
    ATELIER_CACHE_DIR: join(studio.config.ATELIER_DATA_DIR, 'cache'),
    ATELIER_LOCK_MS: 10_000,
    ATELIER_CANCEL_GRACE_MS: GRACE_MS,
  };
  const redis = createRedis(config, 'worker');
  const trainer = await startTrainer({
    config,
    redis,
    store: studio.store,
    catalog,
    spawnEngine,
    log: createLogger(config, 'trainer'),
  });
  try {
    return await work(trainer);
  } finally {
    await trainer.close(GRACE_MS);
    redis.disconnect();
  }
}

const ended = async (job: JobRecord): Promise<JobRecord> => (await studio.jobs.wait(job, 45_000))!;
const atStep = (job: JobRecord, step: number): Promise<void> =>
  until(async () => (await studio.jobs.get(job))!.progress.step >= step);
async function metricsOf(ref: JobRef): Promise<TrainingMetrics | null> {
  const file = await studio.store.get(trainingMetricsKey(ref));
  return file && TrainingMetrics.parse(JSON.parse((await buffer(file.body)).toString()));
}
const keys = async (job: JobRef): Promise<string[]> =>
  (await studio.store.list(trainingPrefix(job))).objects.map(({ key }) => key);

test('a dataset becomes versions of a LoRA, and what was measured is kept', async () => {
  const { id, tenant } = await withTrainer(async (trainer) => {
    await until(async () => (await listWorkers(client)).length === 1);
    expect(await listWorkers(client)).toEqual([
      expect.objectContaining({ id: trainer.id, kind: 'training', provider: 'cpu', pid: process.pid }),
    ]);
    const job = await submit({
      name: 'ink',
      trigger_word: 'inkwash',
      validation_every: 4,
      min_snr_gamma: 5,
      sample_prompts: ['a heron', 'eine Möwe'],
    });
    expect(await ended(job)).toMatchObject({
      status: 'succeeded',
      attempts: 1,
      error: null,
      output: { lora: 'ink@2' },
      progress: { step: 6, steps: 6, fraction: 1 },
    });
    return job;
  });
  expect(await listWorkers(client)).toEqual([]);
  const lora = (await studio.loras.get(T, 'ink'))!;
  expect(lora.trigger_words).toEqual(['inkwash']);
  expect(lora.versions).toHaveLength(2);
  for (const version of lora.versions)
    expect(version).toMatchObject({
      dialects: ['peft'],
      rank: { min: 4, max: 4 },
      base_model: 'tiny-dev',
      provenance: { source: 'training', training_job: id },
    });

  const metrics = (await metricsOf({ tenant, id }))!;
  expect(metrics.steps.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
  expect(metrics.steps.every(({ loss }) => loss > 0)).toBe(true);
  expect(metrics.validation.map(({ epoch }) => epoch)).toEqual([0, 1, 2]);
  expect(metrics.checkpoints).toEqual([
    { epoch: 1, step: 3, lora: 'ink@1' },
    { epoch: 2, step: 6, lora: 'ink@2' },
  ]);
  expect(metrics.samples.map(({ epoch, step, index, seed }) => [epoch, step, index, seed])).toEqual([
    [0, 0, 0, 42],
    [0, 0, 1, 43],
    [1, 3, 0, 42],
    [1, 3, 1, 43],
    [2, 6, 0, 42],
    [2, 6, 1, 43],
  ]);
  for (const { step, index, sha256 } of metrics.samples) {
    const stored = await studio.store.get(trainingSampleKey({ tenant, id }, step, index));
    const bytes = await buffer(stored!.body);
    expect(createHash('sha256').update(bytes).digest('hex')).toBe(sha256);
    expect(await sharp(bytes).metadata()).toMatchObject({
      format: 'png',
      width: 64,
      height: 64,
      channels: 3,
    });
  }
  const samples = metrics.samples.map(({ step, index }) => trainingSampleKey({ tenant, id }, step, index));
  expect(await keys({ tenant, id })).toEqual([trainingMetricsKey({ tenant, id }), ...samples].sort());
});

test('a training that two trainers share ends as that of one does, to the byte', async () => {
  const plan = { max_epochs: 30, save_every_n_epochs: 10, sample_prompts: ['a heron'], validation_every: 4 };
  const undisturbed = await submit({ name: 'alone', ...plan });
  await withTrainer(() => ended(undisturbed));
  const job = await submit({ name: 'shared', ...plan });
  await withTrainer(() => atStep(job, 3));
  const between = (await studio.jobs.get(job))!;
  expect(between).toMatchObject({ status: 'queued', attempts: 0 });
  const stoppedAt = between.progress.step;
  expect(stoppedAt).toBeLessThan(90);
  expect(await keys(job)).toContainEqual(expect.stringMatching(/\/resume\.json$/));
  await withTrainer(() => ended(job));
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'succeeded', attempts: 1, error: null });

  const hashes = async (name: string): Promise<string[]> =>
    (await studio.loras.get(T, name))!.versions.map(({ sha256 }) => sha256);
  expect(await hashes('alone')).toHaveLength(3);
  expect(await hashes('shared')).toEqual(await hashes('alone'));
  const { checkpoints, ...one } = (await metricsOf(undisturbed))!;
  expect(await metricsOf(job)).toMatchObject(one);
  expect(one.samples.map(({ step }) => step)).toEqual([0, 30, 60, 90]);
  expect(checkpoints).toHaveLength(3);
});

test('an engine that dies costs what came after the checkpoint, and the measurements say so', async () => {
  const engines: EngineProcess[] = [];
  const spawn = (onLog: (line: string) => void): EngineProcess => {
    engines.push(EngineProcess.spawn({ onLog }));
    return engines.at(-1)!;
  };
  const plan = { max_epochs: 30, save_every_n_epochs: 10, sample_prompts: ['a heron'] };
  const job = await submit({ name: 'crashed', ...plan });
  await withTrainer(async () => {
    // Far enough behind the first checkpoint, at step 40, that measurements of later steps are in the store.
    await until(async () => ((await metricsOf(job))?.steps.length ?? 0) > 41);
    engines[0]!.kill();
    expect(await ended(job)).toMatchObject({ status: 'succeeded', attempts: 2 });
  }, spawn);
  const metrics = (await metricsOf(job))!;
  expect(metrics.steps.map(({ step }) => step)).toEqual(Array.from({ length: 120 }, (_, i) => i + 1));
  expect(metrics.samples.map(({ step }) => step)).toEqual([0, 40, 80, 120]);
  expect(metrics.checkpoints.map(({ step, lora }) => [step, lora])).toEqual([
    [40, 'crashed@1'],
    [80, 'crashed@2'],
    [120, 'crashed@3'],
  ]);
});

test('what a running training measures can be seen before its first checkpoint', async () => {
  await withTrainer(async () => {
    const job = await submit({ name: 'live', max_epochs: 1_000, save_every_n_epochs: 1_000 });
    await until(async () => ((await metricsOf(job))?.steps.length ?? 0) > 0);
    const first = (await metricsOf(job))!.steps.length;
    await until(async () => (await metricsOf(job))!.steps.length > first);
    expect((await metricsOf(job))!.checkpoints).toEqual([]);
    await studio.jobs.requestCancel(job);
    expect(await ended(job)).toMatchObject({ status: 'canceled' });
    const { step } = (await studio.jobs.get(job))!.progress;
    expect((await metricsOf(job))!.steps.length).toBeGreaterThanOrEqual(step);
  });
});

test('a training that is canceled while it draws stops between two steps of a picture', async () => {
  await withTrainer(async () => {
    const job = await submit({
      name: 'drawing',
      sample_prompts: Array<string>(8).fill('a heron'),
      resolution: 256,
    });
    await until(async () => ((await metricsOf(job))?.samples.length ?? 0) > 0);
    await studio.jobs.requestCancel(job);
    expect(await ended(job)).toMatchObject({ status: 'canceled', progress: { step: 0 } });
    const { samples } = (await metricsOf(job))!;
    expect(samples.length).toBeLessThan(8);
    expect((await keys(job)).filter((key) => key.endsWith('.png'))).toHaveLength(samples.length);
  });
});

test('a job to cancel stops, and publishes nothing more', async () => {
  await withTrainer(async () => {
    const job = await submit({ name: 'never', max_epochs: 1_000, save_every_n_epochs: 1_000 });
    await atStep(job, 2);
    await studio.jobs.requestCancel(job);
    expect(await ended(job)).toMatchObject({ status: 'canceled', output: null });
    expect(await studio.loras.get(T, 'never')).toBeNull();
    await until(async () => (await keys(job)).every((key) => key.endsWith('/metrics.json')));
  });
});

test('a dataset with a problem, or none, ends the job at once with the reason', async () => {
  await withTrainer(async () => {
    const broken = await ended(await submit({ name: 'broken', dataset: await store(3, true) }));
    expect(broken).toMatchObject({
      status: 'failed',
      attempts: 1,
      error: {
        code: 'dataset_invalid',
        message: expect.stringContaining('images/003.png'),
        retryable: false,
      },
    });
    const none = await ended(await submit({ name: 'none', dataset: `dst_${'0'.repeat(32)}` }));
    expect(none).toMatchObject({ status: 'failed', attempts: 1, error: { code: 'dataset_invalid' } });
  });
});
