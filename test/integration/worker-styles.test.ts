import { createHash } from 'node:crypto';
import { readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { EngineProcess } from '@atelier/flux';
import { fileKey, versionKey } from '@atelier/shared';
import type { JobRecord } from '@atelier/shared';
import { InstantEngine } from '../support/engines.ts';
import { type SmallLora, writeSmallLora } from '../support/lora-files.ts';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

const T = 'default';

let studio: TestStudio;
let engine: InstantEngine;
beforeEach(async () => {
  studio = await startTestStudio();
  engine = new InstantEngine();
});
afterEach(() => studio.stop());

/** Publishes a file that changes one module, as an import or a training does. @returns its SHA-256 */
async function publish(name: string, lora: SmallLora): Promise<string> {
  const path = await writeSmallLora(join(studio.config.ATELIER_DATA_DIR, `${name}.safetensors`), lora);
  const bytes = await readFile(path);
  const { version } = await studio.loras.add(T, name, {
    path,
    size: bytes.length,
    sha256: createHash('sha256').update(bytes).digest('hex'),
    dialects: ['peft'],
    rank: { min: 2, max: 2 },
    modules: { transformer: 1, text_encoder: 0 },
    base_model: null,
    warnings: [],
    provenance: { source: 'import', filename: null, training_job: null },
  });
  return version.sha256;
}

/** A worker with a cache folder of its own, so that nothing is there from another test. */
const worker = (spawn: () => InstantEngine | EngineProcess = () => engine) =>
  studio.worker(spawn, { ATELIER_CACHE_DIR: join(studio.config.ATELIER_DATA_DIR, 'cache') });
const ended = async (job: JobRecord): Promise<JobRecord> => (await studio.jobs.wait(job, 30_000))!;

test('each job gets the versions that its styles stood for when it was accepted, also after a new one', async () => {
  const ink = [await publish('ink', { seed: 1 })];
  const paper = await publish('paper', { seed: 5 });
  const before = await studio.submit({
    steps: 2,
    styles: [{ lora: 'ink' }, { lora: 'paper', weight: -0.5 }],
  });
  ink.push(await publish('ink', { seed: 2 }));
  const after = await studio.submit({ steps: 2, styles: [{ lora: 'ink', weight: 0.8 }] });
  const plain = await studio.submit({ steps: 2 });
  const { metrics } = await worker();
  for (const job of [before, after, plain]) expect(await ended(job)).toMatchObject({ status: 'succeeded' });

  const [first, second, third] = engine.requests.map(({ styles }) => styles);
  expect(first!.map(({ key, weight }) => [key, weight])).toEqual([
    [`ink@1:${ink[0]}`, 1],
    [`paper@1:${paper}`, -0.5],
  ]);
  expect(second!.map(({ key, weight }) => [key, weight])).toEqual([[`ink@2:${ink[1]}`, 0.8]]);
  expect(third).toBeUndefined();
  for (const { file, key } of [...first!, ...second!])
    expect(
      key.endsWith(
        createHash('sha256')
          .update(await readFile(file))
          .digest('hex'),
      ),
    ).toBe(true);
  expect((await ended(before)).timings!.style_ms).toBeGreaterThan(0);
  expect(await metrics.registry.metrics()).toContain('atelier_style_cache_total{result="miss"} 3');
});

test('a job whose LoRA is gone from the store fails at once; the worker goes on', async () => {
  await publish('ink', { seed: 1 });
  const job = await studio.submit({ styles: [{ lora: 'ink' }] });
  await studio.store.delete(versionKey(T, 'ink', 1));
  await studio.store.delete(fileKey(T, 'ink', 1));
  await worker();
  expect(await ended(job)).toMatchObject({
    status: 'failed',
    attempts: 1,
    error: { code: 'unknown_lora', message: expect.stringContaining('ink@1'), retryable: false },
  });
  expect(engine.requests).toEqual([]);
  expect(await ended(await studio.submit())).toMatchObject({ status: 'succeeded' });
});

test('while the store is away a job waits for its styles', async () => {
  await publish('ink', { seed: 1 });
  const job = await studio.submit({ styles: [{ lora: 'ink' }] });
  const root = join(studio.config.ATELIER_DATA_DIR, 'store');
  await rename(root, `${root}-away`);
  await writeFile(root, '');
  await worker();
  await until(async () => (await studio.jobs.get(job))!.status === 'running');
  await sleep(500);
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'running', attempts: 1 });
  await rm(root);
  await rename(`${root}-away`, root);
  expect(await ended(job)).toMatchObject({ status: 'succeeded', attempts: 1 });
});

test('three sets of styles in a row on one real engine: each changes the picture, none stays', async () => {
  await publish('ink', { seed: 1, scale: 40 });
  await publish('paper', { seed: 2, scale: 40 });
  const { metrics } = await studio.worker(() => EngineProcess.spawn());
  const request = { steps: 2, seed: 7, width: 64, height: 64 };
  const pictures: string[] = [];
  for (const styles of [
    [],
    [{ lora: 'ink' }],
    [{ lora: 'ink', weight: 0.5 }, { lora: 'paper' }],
    [{ lora: 'paper', weight: -1 }],
    [{ lora: 'ink' }],
    [],
  ]) {
    const done = await ended(await studio.submit({ ...request, styles }));
    expect(done).toMatchObject({ status: 'succeeded', attempts: 1, error: null });
    pictures.push(done.output!.images[0]!.sha256);
  }
  expect(pictures[4]).toBe(pictures[1]);
  expect(pictures[5]).toBe(pictures[0]);
  expect(new Set(pictures).size).toBe(4);
  const text = await metrics.registry.metrics();
  expect(text).toContain('atelier_model_load_seconds_count{model="mini"} 1');
  expect(text).toContain('atelier_engine_crashes_total 0');
});

test('a style that does not fit the model is the job’s end, and no file stays in use', async () => {
  await worker(() => EngineProcess.spawn());
  await publish('wide', { features: 48 });
  expect(await ended(await studio.submit({ steps: 1, styles: [{ lora: 'wide' }] }))).toMatchObject({
    status: 'failed',
    attempts: 1,
    error: { code: 'lora_invalid', message: expect.stringMatching(/^wide@1: .*48/), retryable: false },
  });
  expect(await readdir(join(studio.config.ATELIER_DATA_DIR, 'cache/loras'))).toHaveLength(1);
  expect(await ended(await studio.submit({ steps: 1 }))).toMatchObject({ status: 'succeeded' });
});
