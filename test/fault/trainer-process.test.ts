import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import {
  DatasetStore,
  type JobRecord,
  TrainingInput,
  trainingPrefix,
  trainingResumeKey,
} from '@atelier/shared';
import sharp from 'sharp';
import { FIXTURES } from '../golden/support.ts';
import { descendants, isRunning, survivors } from '../support/processes.ts';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

/*
 * What happens to a training when the real trainer's processes are told to end or are killed: it goes on, and ends
 * with the bytes of one that nothing happened to.
 */
const ROOT = join(import.meta.dirname, '../..');
const T = 'default';
/** A killed trainer's job is taken up after about twice this; a lock that short survives a machine with work for ten. */
const LOCK_MS = 3_000;
/** Enough steps for a kill to land between the first checkpoint and the last. */
const PLAN = { max_epochs: 36, save_every_n_epochs: 12 };
const VERSIONS = 3;

let studio: TestStudio;
let dataset: string;
let env: NodeJS.ProcessEnv;
let undisturbed: string[];
const processes: ChildProcess[] = [];

beforeAll(async () => {
  studio = await startTestStudio();
  env = { ATELIER_LOCK_MS: String(LOCK_MS), ...(await tinyCatalog()) };
  dataset = await storeDataset();
  const job = await submit('alone');
  const trainer = start();
  await ended(job);
  trainer.kill('SIGTERM');
  await exitOf(trainer);
  undisturbed = await versions('alone');
});
afterEach(endAll);
afterAll(async () => {
  await endAll();
  await studio.stop();
});

async function endAll(): Promise<void> {
  for (const child of processes) child.kill('SIGKILL');
  await Promise.all(processes.splice(0).map(exitOf));
}

/** Writes a catalog of one tiny model; returns the variables that name it. */
async function tinyCatalog(): Promise<NodeJS.ProcessEnv> {
  const models = join(studio.config.ATELIER_DATA_DIR, 'models');
  const folder = join(models, 'tiny-dev');
  await mkdir(folder, { recursive: true });
  const index = { max_sequence_length: 16, default_size: 64, default_steps: 4, default_guidance: 1 };
  await writeFile(join(folder, 'model_index.json'), JSON.stringify(index));
  const { files } = JSON.parse(await readFile(join(FIXTURES, 'tiny-dev/model.json'), 'utf8')) as {
    files: Record<string, string>;
  };
  const at = (path: string): string => relative(folder, join(FIXTURES, 'tiny-dev', path));
  const entry = {
    name: 'tiny-dev',
    title: 'tiny-dev',
    family: 'flux',
    folder: 'tiny-dev',
    license: 'none',
    files: Object.fromEntries(Object.entries(files).map(([name, path]) => [name, at(path)])),
  };
  await writeFile(join(models, 'catalog.json'), JSON.stringify({ models: [entry] }));
  return { ATELIER_CATALOG: join(models, 'catalog.json'), ATELIER_MODELS_DIR: models };
}

/** @returns its id */
async function storeDataset(): Promise<string> {
  const files: [path: string, bytes: Buffer][] = [];
  for (const i of [1, 2, 3, 4]) {
    const background = { r: 50 * i, g: 255 - 40 * i, b: 90 };
    const image = sharp({ create: { width: 64, height: 72, channels: 3, background } });
    files.push(
      [`images/${i}.png`, await image.png().toBuffer()],
      [`prompts/${i}.txt`, Buffer.from(`no. ${i}`)],
    );
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

async function submit(name: string): Promise<JobRecord> {
  const small = { batch_size: 1, gradient_accumulation_steps: 1, learning_rate: 1e-2, resolution: 64 };
  const input = TrainingInput.parse({ name, dataset, model: 'tiny-dev', ...small, ...PLAN });
  const record = await studio.jobs.create({ kind: 'training', input });
  await studio.queues.enqueueTraining(record);
  return record;
}

function start(more: NodeJS.ProcessEnv = {}): ChildProcess {
  const child = spawn(process.execPath, ['apps/trainer/src/main.ts'], {
    cwd: ROOT,
    env: { ...process.env, ...studio.env, ...env, ...more },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  processes.push(child);
  return child;
}

function exitOf(child: ChildProcess): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve(child.exitCode);
  return new Promise((resolve) => child.once('exit', (code) => resolve(code)));
}

const ended = async (job: JobRecord): Promise<JobRecord> => (await studio.jobs.wait(job, 120_000))!;
const versions = async (name: string): Promise<string[]> =>
  (await studio.loras.get(T, name))!.versions.map(({ sha256 }) => sha256);
const keys = async (job: JobRecord): Promise<string[]> =>
  (await studio.store.list(trainingPrefix(job))).objects.map(({ key }) => key);
/** Folders of the job's attempts in the cache. */
const folders = async (job: JobRecord): Promise<string[]> =>
  (await readdir(join(studio.config.ATELIER_CACHE_DIR, 'trainings'))).filter((name) => name.includes(job.id));
const stepOf = async (job: JobRecord): Promise<number> => (await studio.jobs.get(job))!.progress.step;

/** Waits until a checkpoint of the job is stored. */
const checkpointStored = (job: JobRecord): Promise<void> =>
  until(async () => (await studio.store.head(trainingResumeKey(job))) !== null);

/** The job ended after `attempts`, as if nothing had happened, and left nothing to go on from. */
async function expectUndisturbed(job: JobRecord, name: string, attempts: number): Promise<void> {
  expect(await ended(job)).toMatchObject({
    status: 'succeeded',
    attempts,
    error: null,
    output: { lora: `${name}@${VERSIONS}` },
  });
  expect(undisturbed).toHaveLength(VERSIONS);
  expect(await versions(name)).toEqual(undisturbed);
  await until(async () => (await keys(job)).every((key) => key.endsWith('/metrics.json')));
  await until(async () => (await folders(job)).length === 0);
}

test('SIGTERM: the training goes back to the queue with its attempt, and another process ends it', async () => {
  const job = await submit('told');
  const trainer = start({ ATELIER_SHUTDOWN_GRACE_MS: '20000' });
  await until(async () => (await stepOf(job)) >= 3);
  const engine = descendants(trainer.pid!);
  expect(engine).not.toEqual([]);
  trainer.kill('SIGTERM');
  expect(await exitOf(trainer)).toBe(0);
  expect(await survivors(engine, 2_000)).toEqual([]);
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'queued', attempts: 0, error: null });
  expect(await keys(job)).toContain(trainingResumeKey(job));
  start();
  await expectUndisturbed(job, 'told', 1);
});

test('SIGKILL of the trainer: its engine ends too, and another process goes on from the checkpoint', async () => {
  const job = await submit('killed');
  const trainer = start();
  await checkpointStored(job);
  const engine = descendants(trainer.pid!);
  expect(engine).not.toEqual([]);
  trainer.kill('SIGKILL');
  expect(await survivors(engine, 10_000)).toEqual([]);
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'running', attempts: 1 });
  expect(await folders(job)).toHaveLength(1);
  start();
  await expectUndisturbed(job, 'killed', 2);
});

test('SIGKILL of the engine alone: the trainer goes on from the checkpoint with a new one', async () => {
  const job = await submit('crashed');
  const trainer = start();
  await checkpointStored(job);
  const engine = descendants(trainer.pid!);
  expect(engine).toHaveLength(1);
  process.kill(engine[0]!, 'SIGKILL');
  await expectUndisturbed(job, 'crashed', 2);
  expect(isRunning(trainer.pid!)).toBe(true);
});
