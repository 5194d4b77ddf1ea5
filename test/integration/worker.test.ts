import { createHash } from 'node:crypto';
import { rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { FluxError } from '@atelier/flux';
import { newAttemptToken } from '@atelier/shared';
import type { JobEvent, JobRecord } from '@atelier/shared';
import sharp from 'sharp';
import type { Engine } from '../../apps/gpu-worker/src/engine.ts';
import { FailingEngine, HangingEngine, InstantEngine } from '../support/engines.ts';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

let studio: TestStudio;
let engines: InstantEngine[];
beforeEach(async () => {
  studio = await startTestStudio();
  engines = [];
});
afterEach(() => studio.stop());

/** Hands out the given engines in turn, the last one again and again. */
function engineSource(...make: (() => InstantEngine)[]): () => Engine {
  return () => {
    const engine = make[Math.min(engines.length, make.length - 1)]!();
    engines.push(engine);
    return engine;
  };
}
const instant = (): InstantEngine => new InstantEngine();
const slow = (): InstantEngine => new InstantEngine({ stepMs: 50 });

const ended = async (job: JobRecord): Promise<JobRecord> => (await studio.jobs.wait(job, 15_000))!;
const running = (job: JobRecord): Promise<void> =>
  until(async () => (await studio.jobs.get(job))!.progress.step > 0);
const bytes = async (key: string): Promise<Buffer> => buffer((await studio.store.get(key))!.body);
const storedKeys = async (job: JobRecord): Promise<string[]> =>
  (await studio.store.list(`tenants/default/generations/${job.id}/`)).objects.map(({ key }) => key);

describe('a job', () => {
  test('ends with its pictures in the store, one per seed, and what it cost', async () => {
    await studio.worker(engineSource(instant));
    const job = await studio.submit({ seed: 40, count: 2, width: 96, height: 64 });
    const done = await ended(job);
    expect(done).toMatchObject({
      status: 'succeeded',
      attempts: 1,
      error: null,
      progress: { step: 40, steps: 40, fraction: 1, eta_s: 0 },
    });
    const { images } = done.output!;
    expect(images.map(({ seed }) => seed)).toEqual([40, 41]);
    for (const image of images) {
      expect(image.key).toMatch(
        new RegExp(`^tenants/default/generations/${job.id}/[0-9a-f]{32}/[01]\\.png$`),
      );
      const file = await bytes(image.key);
      expect(createHash('sha256').update(file).digest('hex')).toBe(image.sha256);
      const { data, info } = await sharp(file).raw().toBuffer({ resolveWithObject: true });
      expect(info).toMatchObject({ width: 96, height: 64, channels: 3 });
      expect(data.every((value) => value === image.seed)).toBe(true);
    }
    expect(Object.keys(done.timings!).sort()).toEqual([
      'decode_ms',
      'denoise_ms',
      'encode_ms',
      'load_ms',
      'overhead_ms',
      'queue_ms',
      'style_ms',
      'text_ms',
      'total_ms',
      'upload_ms',
    ]);
  });

  test.each([
    ['jpeg', 'image/jpeg', 'jpg'],
    ['webp', 'image/webp', 'webp'],
  ] as const)('can be %s', async (format, contentType, extension) => {
    await studio.worker(engineSource(instant));
    const { output } = await ended(await studio.submit({ format }));
    const [image] = output!.images;
    expect(image).toMatchObject({ content_type: contentType });
    expect(image!.key).toMatch(new RegExp(`\\.${extension}$`));
    expect(await studio.store.head(image!.key)).toMatchObject({ contentType });
    expect(await sharp(await bytes(image!.key)).metadata()).toMatchObject({
      format,
      width: 128,
      height: 128,
    });
  });

  test('reports each phase and at most about four steps a second', async () => {
    const job = await studio.submit({ steps: 20 });
    const events: JobEvent[] = [];
    await studio.jobs.subscribe(job, (event) => events.push(event));
    await studio.worker(engineSource(slow));
    await ended(job);
    const steps = events.filter(({ type }) => type === 'progress').map(({ progress }) => progress.step);
    expect(steps[0]).toBe(1);
    expect(steps.length).toBeGreaterThanOrEqual(3);
    expect(steps.length).toBeLessThanOrEqual(7);
    expect(steps).toEqual([...steps].sort((a, b) => a - b));
    expect(events.at(-1)).toMatchObject({ type: 'status', status: 'succeeded' });
    expect(events.some(({ progress }) => (progress.eta_s ?? 0) > 0)).toBe(true);
  });

  test('a waiting worker takes a new job at once', async () => {
    await studio.worker(engineSource(instant));
    await ended(await studio.submit());
    await sleep(200);
    const began = performance.now();
    await ended(await studio.submit());
    expect(performance.now() - began).toBeLessThan(1_000);
  });
});

describe('an init image', () => {
  const KEY = 'tenants/default/uploads/start';
  const IMAGE = { file: 'data:,', strength: 0.5 };

  test.each(['png', 'jpeg', 'webp'] as const)(
    'from %s is resized to the picture, transparency on white',
    async (format) => {
      const raw = sharp({
        create: { width: 300, height: 200, channels: 4, background: { r: 0, g: 0, b: 0, alpha: 0 } },
      });
      const file = await (format === 'jpeg' ? raw.flatten({ background: 'white' }) : raw)
        .toFormat(format)
        .toBuffer();
      await studio.store.put(KEY, file, { contentType: `image/${format}` });
      await studio.worker(engineSource(instant));
      expect(await ended(await studio.submit({ image: IMAGE }, KEY))).toMatchObject({ status: 'succeeded' });
      const { image } = engines[0]!.requests[0]!;
      expect(image!.strength).toBe(0.5);
      expect(image!.pixels.length).toBe(128 * 128 * 3);
      expect(image!.pixels.every((value) => value > 250)).toBe(true);
    },
  );

  test.each([
    ['is not a picture', Buffer.from('GIF89a but not really')],
    ['is missing', null],
  ])('that %s fails the job at once, with the reason', async (_, file) => {
    if (file) await studio.store.put(KEY, file, { contentType: 'image/png' });
    await studio.worker(engineSource(instant));
    expect(await ended(await studio.submit({ image: IMAGE }, KEY))).toMatchObject({
      status: 'failed',
      attempts: 1,
      error: { code: 'image_invalid', retryable: false },
    });
  });
});

describe('an engine that fails', () => {
  test('by dying in the middle costs one attempt', async () => {
    const worker = await studio.worker(engineSource(() => new FailingEngine('engine_crashed'), instant));
    const done = await ended(await studio.submit());
    expect(done).toMatchObject({ status: 'succeeded', attempts: 2, error: null });
    expect(engines).toHaveLength(2);
    expect(await worker.metrics.registry.metrics()).toContain('atelier_engine_crashes_total 1');
  });

  test('every time fails the job after the configured attempts; the next job is tried', async () => {
    await studio.worker(engineSource(() => new FailingEngine('engine_failed')));
    const [first, second] = [await studio.submit(), await studio.submit()];
    for (const job of [first, second])
      expect(await ended(job)).toMatchObject({
        status: 'failed',
        attempts: 3,
        output: null,
        error: { code: 'engine_failed', message: 'failed on purpose with engine_failed', retryable: true },
      });
    expect(engines).toHaveLength(1);
    expect(await studio.queues.queueCounts()).toMatchObject({ waiting: 0, active: 0, delayed: 0 });
  });

  test('for a reason that stays is not tried again', async () => {
    await studio.worker(engineSource(() => new FailingEngine('request_invalid')));
    expect(await ended(await studio.submit())).toMatchObject({
      status: 'failed',
      attempts: 1,
      error: { code: 'validation_failed', retryable: false },
    });
  });

  test('for want of memory is replaced', async () => {
    await studio.worker(engineSource(() => new FailingEngine('out_of_memory'), instant));
    expect(await ended(await studio.submit())).toMatchObject({ status: 'succeeded', attempts: 2 });
    expect(engines).toHaveLength(2);
    await expect(engines[0]!.exited).resolves.toMatchObject({ signal: 'SIGKILL' });
  });
});

test('a model that cannot be loaded fails the job with the reason; the worker goes on', async () => {
  class Unloadable extends InstantEngine {
    override async load(): Promise<never> {
      throw new FluxError('checkpoint_invalid', 'the header of transformer.safetensors is cut off');
    }
  }
  const source = engineSource(() => new Unloadable(), instant);
  await studio.worker(source, { ATELIER_ENGINE_PRELOAD: false });
  expect(await ended(await studio.submit())).toMatchObject({
    status: 'failed',
    attempts: 1,
    error: { code: 'model_load_failed', message: expect.stringContaining('is cut off'), retryable: false },
  });
  expect(await ended(await studio.submit())).toMatchObject({ status: 'succeeded' });
  engines = [];
  const refused = studio.worker(engineSource(() => new Unloadable()));
  await expect(refused).rejects.toMatchObject({ code: 'checkpoint_invalid' });
});

describe('cancel', () => {
  test('stops a running job at its next step; the engine goes on with the next job', async () => {
    await studio.worker(engineSource(slow));
    const job = await studio.submit({ steps: 50 });
    const next = await studio.submit({ steps: 2 });
    await running(job);
    const asked = performance.now();
    await studio.jobs.requestCancel(job);
    const record = await ended(job);
    expect(record).toMatchObject({ status: 'canceled', output: null, error: null });
    expect(performance.now() - asked).toBeLessThan(500);
    expect(record.progress.step).toBeLessThan(50);
    expect(await ended(next)).toMatchObject({ status: 'succeeded', attempts: 1 });
    expect(engines).toHaveLength(1);
  });

  test('leaves no picture behind', async () => {
    await studio.worker(engineSource(slow));
    const job = await studio.submit({ steps: 4, count: 8 });
    await until(async () => (await storedKeys(job)).length > 0);
    await studio.jobs.requestCancel(job);
    expect(await ended(job)).toMatchObject({ status: 'canceled' });
    await until(async () => (await storedKeys(job)).length === 0);
  });

  test('kills an engine that does not listen', async () => {
    await studio.worker(engineSource(() => new HangingEngine(), instant));
    const job = await studio.submit();
    await running(job);
    await studio.jobs.requestCancel(job);
    expect(await ended(job)).toMatchObject({ status: 'canceled', attempts: 1 });
    expect(await ended(await studio.submit())).toMatchObject({ status: 'succeeded' });
    expect(engines).toHaveLength(2);
  });

  test('of a waiting job keeps it from the engine', async () => {
    const job = await studio.submit();
    await studio.jobs.requestCancel(job);
    await studio.worker(engineSource(instant));
    await ended(await studio.submit());
    expect(engines.flatMap(({ requests }) => requests)).toHaveLength(1);
    expect(await studio.jobs.get(job)).toMatchObject({ status: 'canceled', attempts: 0 });
    await until(async () => (await studio.queues.queueCounts()).active === 0);
  });
});

describe('closing a worker', () => {
  test('gives the job back after the grace, without spending an attempt, and another worker finishes it', async () => {
    const worker = await studio.worker(engineSource(slow, instant));
    const job = await studio.submit({ steps: 50 });
    await running(job);
    await worker.close(0);
    expect(await studio.jobs.get(job)).toMatchObject({ status: 'queued', attempts: 0, worker: null });
    expect(await studio.queues.queuePosition(job.id)).toBe(0);
    await studio.worker(engineSource(instant));
    expect(await ended(job)).toMatchObject({ status: 'succeeded', attempts: 1 });
  });

  test('lets the job finish within the grace, and takes no other', async () => {
    const worker = await studio.worker(engineSource(slow));
    const [job, next] = [await studio.submit({ steps: 10 }), await studio.submit()];
    await running(job);
    await worker.close(10_000);
    expect(await studio.jobs.get(job)).toMatchObject({ status: 'succeeded' });
    expect(await studio.jobs.get(next)).toMatchObject({ status: 'queued' });
  });
});

test('an attempt that another one took over stops and publishes nothing', async () => {
  const worker = await studio.worker(engineSource(slow));
  const job = await studio.submit({ steps: 20 });
  await running(job);
  const other = { tenant: job.tenant, id: job.id, token: newAttemptToken() };
  await studio.jobs.start(other, 'another-worker');
  await until(async () =>
    (await worker.metrics.registry.metrics()).includes('outcome="superseded",code=""} 1'),
  );
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'running', attempt: other.token });
  expect(await storedKeys(job)).toEqual([]);
});

test('while the store is away a finished picture waits for it', async () => {
  await studio.worker(engineSource(slow));
  const job = await studio.submit({ steps: 5 });
  await running(job);
  const root = join(studio.config.ATELIER_DATA_DIR, 'store');
  await studio.store.ping();
  await rename(root, `${root}-away`);
  await writeFile(root, '');
  await sleep(1_000);
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'running', attempts: 1 });
  await rm(root);
  await rename(`${root}-away`, root);
  expect(await ended(job)).toMatchObject({ status: 'succeeded', attempts: 1 });
  expect(await storedKeys(job)).toHaveLength(1);
});

test('a job whose queue entry was lost runs when a worker starts', async () => {
  const job = await studio.submit();
  await studio.queues.remove(job);
  await studio.worker(engineSource(instant));
  expect(await ended(job)).toMatchObject({ status: 'succeeded' });
});
