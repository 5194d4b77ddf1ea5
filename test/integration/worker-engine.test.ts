import { buffer } from 'node:stream/consumers';
import { EngineProcess } from '@atelier/flux';
import type { JobRecord } from '@atelier/shared';
import sharp from 'sharp';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

/** The worker with the real engine and the bundled model. */
let studio: TestStudio;
let engines: EngineProcess[];
beforeAll(async () => {
  studio = await startTestStudio();
  engines = [];
  const spawn = (): EngineProcess => {
    const engine = EngineProcess.spawn();
    engines.push(engine);
    return engine;
  };
  // A step on a busy machine takes longer than the other tests' engines are given.
  await studio.worker(spawn, { ATELIER_CANCEL_GRACE_MS: 20_000 });
});
afterAll(async () => {
  await studio.stop();
  for (const engine of engines) await engine.exited;
});

const ended = async (job: JobRecord): Promise<JobRecord> => (await studio.jobs.wait(job, 45_000))!;
const atStep = (job: JobRecord, step: number): Promise<void> =>
  until(async () => (await studio.jobs.get(job))!.progress.step >= step);

test('an engine killed in the middle costs one attempt and changes nothing about the picture', async () => {
  const request = { prompt: 'a red apple on a blue background', seed: 7, steps: 10 };
  const undisturbed = await ended(await studio.submit(request));
  expect(undisturbed).toMatchObject({ status: 'succeeded', attempts: 1 });
  expect(undisturbed.timings!.denoise_ms).toBeGreaterThan(0);

  const job = await studio.submit(request);
  await atStep(job, 2);
  engines.at(-1)!.kill();
  const done = await ended(job);
  expect(done).toMatchObject({ status: 'succeeded', attempts: 2 });
  expect(done.timings!.load_ms).toBeGreaterThan(0);
  expect(engines).toHaveLength(2);
  expect(done.output!.images[0]!.sha256).toBe(undisturbed.output!.images[0]!.sha256);

  const file = await buffer((await studio.store.get(done.output!.images[0]!.key))!.body);
  const { dominant, channels } = await sharp(file).stats();
  // The prompt's background, which the under-trained model gets right.
  expect(dominant.b).toBeGreaterThan(dominant.r);
  expect(Math.max(...channels.map(({ stdev }) => stdev))).toBeGreaterThan(5);
});

test('a job to cancel stops within a step or two, and the engine lives on', async () => {
  const job = await studio.submit({ steps: 50 });
  await atStep(job, 2);
  const pid = engines.at(-1)!.pid;
  await studio.jobs.requestCancel(job);
  const record = await ended(job);
  expect(record).toMatchObject({ status: 'canceled' });
  expect(record.progress.step).toBeLessThan(40);
  expect(await ended(await studio.submit({ steps: 1 }))).toMatchObject({ status: 'succeeded', attempts: 1 });
  expect(engines.at(-1)!.pid).toBe(pid);
});

test('the lower the strength, the more of the init image stays', async () => {
  const start = await sharp({
    create: { width: 128, height: 128, channels: 3, background: { r: 20, g: 200, b: 40 } },
  })
    .png()
    .toBuffer();
  const key = 'tenants/default/uploads/green.png';
  await studio.store.put(key, start, { contentType: 'image/png' });
  const distance = async (strength: number): Promise<number> => {
    const request = { image: { file: 'data:,', strength }, steps: 8, prompt: 'a red apple', seed: 3 };
    const { output } = await ended(await studio.submit(request, key));
    const file = await buffer((await studio.store.get(output!.images[0]!.key))!.body);
    const [a, b] = await Promise.all([file, start].map((image) => sharp(image).raw().toBuffer()));
    return a!.reduce((sum, value, i) => sum + Math.abs(value - b![i]!), 0) / a!.length;
  };
  const [kept, changed] = [await distance(0.2), await distance(1)];
  expect(kept).toBeLessThan(changed / 2);
});
