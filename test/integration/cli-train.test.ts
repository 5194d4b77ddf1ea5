import { type ChildProcess, type ExecFileException, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EngineProcess } from '@atelier/flux';
import { createLogger, createRedis } from '@atelier/shared';
import sharp from 'sharp';
import { type Trainer, startTrainer } from '../../apps/trainer/src/trainer.ts';
import { type TestApi, startTestApi } from '../support/api.ts';

/*
 * The command line beside a real API and a real trainer on a tiny model.
 */

const PROJECT = join(import.meta.dirname, '../..');
const FIXTURES = join(PROJECT, 'test/golden/fixtures');
const MAIN = join(PROJECT, 'apps/cli/src/main.ts');
const RECIPE = (
  '--batch-size 1 --gradient-accumulation-steps 1 --learning-rate 0.01 ' +
  '--resolution 64 --validation-every 4 --min-snr-gamma 5'
).split(' ');

let api: TestApi;
let trainer: Trainer;
let trainerRedis: ReturnType<typeof createRedis>;
/** Where the command runs: relative paths start here. */
let dir: string;
let env: NodeJS.ProcessEnv;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-cli-train-'));
  const { files } = JSON.parse(await readFile(join(FIXTURES, 'tiny-dev/model.json'), 'utf8'));
  const defaults = { width: 64, height: 64, steps: 2, guidance: 3, max_sequence_length: 16 };
  const model = { name: 'tiny-dev', title: 'Tiny', family: 'flux', folder: 'tiny-dev', license: 'none' };
  const catalog = join(dir, 'catalog.json');
  await writeFile(catalog, JSON.stringify({ models: [{ ...model, files, defaults }] }));
  await mkdir(join(dir, 'pictures/images'), { recursive: true });
  await mkdir(join(dir, 'pictures/prompts'));
  for (let i = 1; i <= 4; i++) {
    const background = { r: 50 * i, g: 255 - 40 * i, b: 90 };
    const image = sharp({ create: { width: 64, height: 64, channels: 3, background } });
    await image.png().toFile(join(dir, `pictures/images/${i}.png`));
    await writeFile(join(dir, `pictures/prompts/${i}.txt`), `picture ${i}`);
  }
  api = await startTestApi({ ATELIER_CATALOG: catalog, ATELIER_MODELS_DIR: FIXTURES });
  trainerRedis = createRedis(api.config, 'worker');
  trainer = await startTrainer({
    config: api.config,
    redis: trainerRedis,
    store: api.store,
    catalog: api.deps.catalog,
    spawnEngine: () => EngineProcess.spawn(),
    log: createLogger(api.config, 'trainer'),
  });
  env = { PATH: process.env['PATH'], ATELIER_URL: api.url };
});
afterAll(async () => {
  await trainer.close(10_000);
  trainerRedis.disconnect();
  await api.close();
  await rm(dir, { recursive: true });
});

function atelier(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [MAIN, ...args],
      { env, cwd: dir },
      (error: ExecFileException | null, stdout, stderr) =>
        resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    );
  });
}

test('a folder becomes a style: losses, versions and samples are told, and how to use it', async () => {
  const wanted = 'train pictures --name ink --max-epochs 2 --save-every-n-epochs 1 --metadata order=7'.split(
    ' ',
  );
  const done = await atelier(...wanted, ...RECIPE, '--sample-prompt', 'a heron', '--trigger-word', 'inkw');
  expect(done).toMatchObject({ code: 0 });
  const id = /^accepted (trn_\w+)$/m.exec(done.stdout)![1]!;
  expect(done.stdout).toMatch(/^trained ink@2 \(6 steps, .*validation loss \d\.\d{4} to \d\.\d{4}\)$/m);
  expect(done.stdout).toMatch(/^use it: atelier generate "inkw, a heron" --style ink@2$/m);
  for (const line of [
    /^before training validation loss \d\.\d{4}$/m,
    /^epoch 1 ink@1 can be used \(step 3\)$/m,
    /^epoch 2 validation loss \d\.\d{4}$/m,
    new RegExp(`^before training .atelier/samples/${id}/step-000000-0.png "a heron"$`, 'm'),
  ])
    expect(done.stderr).toMatch(line);
  const folder = join(dir, '.atelier/samples', id);
  const names = ['step-000000-0.png', 'step-000003-0.png', 'step-000006-0.png'];
  expect((await readdir(folder)).sort()).toEqual(names);
  for (const name of names)
    expect(await sharp(join(folder, name)).metadata()).toMatchObject({
      format: 'png',
      width: 64,
      height: 64,
    });

  const listed = await atelier('jobs', '--kind', 'training');
  expect(listed.stdout).toMatch(new RegExp(`^${id} +succeeded .* trained ink@2$`, 'm'));
  expect((await atelier('jobs', '--kind', 'generation')).stdout).toBe('no jobs yet\n');
  const shown = await atelier('jobs', id);
  expect(shown.stdout).toMatch(/^checkpoint +before training, validation loss \d\.\d{4}$/m);
  expect(shown.stdout).toMatch(/^checkpoint +ink@2 \(step 6, epoch 2, validation loss \d\.\d{4}\)$/m);
  expect(shown.stdout).toMatch(/^ +\S+\/samples\/6\/0 "a heron"$/m);
  expect(JSON.parse((await atelier('jobs', id, '--json')).stdout)).toMatchObject({
    job: { id, metadata: { order: '7' }, input: { min_snr_gamma: 5, sample_prompts: ['a heron'] } },
    checkpoints: [{ step: 0 }, { step: 3 }, { step: 6, lora: 'ink@2' }],
  });
  // Followed again elsewhere, an ended training gives all that it has.
  const again = await atelier('jobs', id, '--follow', '--samples-dir', 'again');
  expect(again).toMatchObject({ code: 0, stdout: expect.stringContaining('trained ink@2') });
  expect((await readdir(join(dir, 'again'))).sort()).toEqual(names);
  expect(await atelier('cancel', id)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('(conflict)'),
  });
});

test('Ctrl-C leaves the training alone and says how to go on; cancel ends it', async () => {
  const args = ['train', 'pictures', '--name', 'long', '--max-epochs', '5000', ...RECIPE];
  const child = spawn(process.execPath, [MAIN, ...args], { env, cwd: dir });
  const output = collect(child);
  const id = await new Promise<string>((resolve, reject) => {
    child.stdout.on('data', () => {
      const found = /^accepted (trn_\w+)$/m.exec(output.stdout)?.[1];
      if (found) resolve(found);
    });
    child.once('close', () => reject(new Error(`ended early: ${output.stderr}`)));
  });
  const ended = once(child, 'close');
  child.kill('SIGINT');
  expect(await ended).toEqual([130, null]);
  expect(output.stderr).toContain(`Follow it: atelier jobs ${id} --follow`);
  expect((await atelier('jobs', id)).stdout).toMatch(/^status +(queued|running)$/m);

  expect((await atelier('cancel', id)).stdout).toMatch(new RegExp(`^(told to stop|canceled) ${id}\n$`));
  expect(await atelier('jobs', id, '--follow')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('(job_canceled)'),
  });
  expect((await atelier('cancel', id)).stdout).toBe(`canceled ${id}\n`);
});

test('what names no job is said before anything is asked', async () => {
  for (const args of [
    ['jobs', 'ink'],
    ['cancel', '../trainings'],
  ])
    expect(await atelier(...args)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('(invalid_id)'),
    });
  expect(await atelier('jobs', '--follow')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('(invalid_argument)'),
  });
});

function collect(child: ChildProcess): { stdout: string; stderr: string } {
  const output = { stdout: '', stderr: '' };
  child.stdout!.on('data', (chunk) => (output.stdout += String(chunk)));
  child.stderr!.on('data', (chunk) => (output.stderr += String(chunk)));
  return output;
}
