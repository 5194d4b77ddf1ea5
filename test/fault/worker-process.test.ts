import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { JobRecord } from '@atelier/shared';
import { descendants, survivors } from '../support/processes.ts';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

/** What happens to jobs when worker processes are killed, frozen or told to end, and when Redis goes away. */
let studio: TestStudio;
let processes: ChildProcess[];
/** How often each job was published. */
let published: Map<string, number>;
beforeEach(async () => {
  studio = await startTestStudio();
  processes = [];
  published = new Map();
});
afterEach(async () => {
  for (const child of processes) child.kill('SIGKILL');
  await Promise.all(processes.map(exitOf));
  await studio.stop();
});

const ROOT = join(import.meta.dirname, '../..');
const SLOW_WORKER = 'test/fault/slow-worker.ts';

function start(script: string, env: NodeJS.ProcessEnv = {}): ChildProcess {
  const child = spawn(process.execPath, [script], {
    cwd: ROOT,
    env: { ...process.env, ...studio.env, ...env },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  processes.push(child);
  return child;
}

function exitOf(child: ChildProcess): Promise<number | null> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve(child.exitCode);
  return new Promise((resolve) => child.once('exit', (code) => resolve(code)));
}

async function submit(steps: number): Promise<JobRecord> {
  const job = await studio.submit({ steps });
  await studio.jobs.subscribe(job, ({ type, status }) => {
    if (type === 'status' && status === 'succeeded') published.set(job.id, (published.get(job.id) ?? 0) + 1);
  });
  return job;
}

const ended = async (job: JobRecord): Promise<JobRecord> => (await studio.jobs.wait(job, 45_000))!;
const running = (job: JobRecord): Promise<void> =>
  until(async () => (await studio.jobs.get(job))!.progress.step > 0);
const storedKeys = async (job: JobRecord): Promise<string[]> =>
  (await studio.store.list(`tenants/default/generations/${job.id}/`)).objects.map(({ key }) => key);

test('SIGKILL in the middle of a job: another worker does it again', async () => {
  const job = await submit(10);
  const first = start(SLOW_WORKER);
  await running(job);
  start(SLOW_WORKER);
  first.kill('SIGKILL');
  const done = await ended(job);
  expect(done).toMatchObject({ status: 'succeeded', attempts: 2 });
  expect(published.get(job.id)).toBe(1);
  expect(await storedKeys(job)).toEqual(done.output!.images.map(({ key }) => key));
});

test('a worker frozen past its lock wakes up after another finished its job, and changes nothing', async () => {
  const job = await submit(12);
  const zombie = start(SLOW_WORKER);
  await running(job);
  zombie.kill('SIGSTOP');
  start(SLOW_WORKER);
  const done = await ended(job);
  expect(done).toMatchObject({ status: 'succeeded', attempts: 2 });

  zombie.kill('SIGCONT');
  // It goes on with a job of its own once it has dropped the stale one.
  const later = [await submit(1), await submit(1), await submit(1), await submit(1)];
  for (const other of later) expect(await ended(other)).toMatchObject({ status: 'succeeded' });
  await sleep(1_500);
  expect(await studio.jobs.get(job)).toEqual(done);
  expect(published.get(job.id)).toBe(1);
  expect(await storedKeys(job)).toEqual(done.output!.images.map(({ key }) => key));
});

test('a job that takes down every worker fails in the end, and the next job is done', async () => {
  const poison = await submit(3);
  // Four die of it; the fifth is there to see that the queue gave it up.
  const victims = Array.from({ length: 5 }, () => start(SLOW_WORKER, { EXIT_AT_STEP: '1' }));
  expect(await ended(poison)).toMatchObject({
    status: 'failed',
    attempts: 4,
    error: { code: 'job_stalled', retryable: false },
  });
  expect(victims.filter(({ signalCode }) => signalCode === 'SIGKILL')).toHaveLength(4);
  for (const victim of victims) victim.kill('SIGKILL');
  const job = await submit(1);
  start(SLOW_WORKER);
  expect(await ended(job)).toMatchObject({ status: 'succeeded' });
});

test('SIGTERM gives the job of the real worker back, ends its engine and exits with 0', async () => {
  const job = await submit(50);
  const worker = start('apps/gpu-worker/src/main.ts', { ATELIER_SHUTDOWN_GRACE_MS: '0' });
  await running(job);
  const engine = descendants(worker.pid!);
  expect(engine).not.toEqual([]);
  worker.kill('SIGTERM');
  expect(await exitOf(worker)).toBe(0);
  expect(await survivors(engine, 2_000)).toEqual([]);
  expect(await studio.jobs.get(job)).toMatchObject({ status: 'queued', attempts: 0 });
  expect(await studio.queues.queuePosition(job.id)).toBe(0);
  start(SLOW_WORKER, { STEP_MS: '1' });
  expect(await ended(job)).toMatchObject({ status: 'succeeded', attempts: 1 });
  expect(published.get(job.id)).toBe(1);
});

test('a second signal does not wait for the job', async () => {
  const job = await submit(50);
  const worker = start(SLOW_WORKER, { ATELIER_SHUTDOWN_GRACE_MS: '60000' });
  await running(job);
  worker.kill('SIGTERM');
  await sleep(200);
  expect(worker.exitCode).toBeNull();
  worker.kill('SIGTERM');
  expect(await exitOf(worker)).toBe(1);
});

test('Redis restarts in the middle of a job, and again between jobs: none is lost, the worker goes on', async () => {
  const jobs = [await submit(15), await submit(3), await submit(3)];
  const worker = start(SLOW_WORKER);
  await running(jobs[0]!);
  await studio.redis.restart(() => sleep(1_500));
  expect(await ended(jobs[1]!)).toMatchObject({ status: 'succeeded' });
  await studio.redis.restart();
  jobs.push(await submit(2));
  for (const job of jobs) expect(await ended(job)).toMatchObject({ status: 'succeeded' });
  expect(worker.exitCode).toBeNull();
  for (const [id, times] of published) expect([id, times]).toEqual([id, 1]);
});

test('a worker that starts while Redis is away takes jobs as soon as it is back', async () => {
  const job = await submit(2);
  let worker: ChildProcess | null = null;
  await studio.redis.restart(async () => {
    worker = start(SLOW_WORKER);
    await sleep(1_500);
    expect(worker.exitCode).toBeNull();
  });
  expect(await ended(job)).toMatchObject({ status: 'succeeded', attempts: 1 });
});
