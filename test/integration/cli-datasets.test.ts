import { type ExecFileException, execFile } from 'node:child_process';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Dataset } from '@atelier/shared';
import sharp from 'sharp';
import { sendDataset } from '../../apps/cli/src/commands/datasets.ts';
import { StudioClient } from '../../apps/cli/src/client.ts';
import { type TestApi, startTestApi } from '../support/api.ts';
import { zip } from '../support/zip.ts';

const PROJECT = join(import.meta.dirname, '../..');
const SAMPLE = join(PROJECT, 'examples', 'ink-wash');
const KEY = 'a-key-of-this-test';

let api: TestApi;
let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-cli-datasets-'));
  api = await startTestApi({ ATELIER_API_KEYS: KEY });
});
afterAll(async () => {
  await api.close();
  await rm(dir, { recursive: true });
});

function datasets(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const command = [join(PROJECT, 'apps/cli/src/main.ts'), 'datasets', ...args];
  const env = { PATH: process.env['PATH'], ATELIER_URL: api.url, ATELIER_API_KEY: KEY };
  return new Promise((resolve) => {
    execFile(process.execPath, command, { env }, (error: ExecFileException | null, stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    );
  });
}

test('the sample folder is uploaded, listed and removed', async () => {
  expect(await datasets()).toMatchObject({ code: 0, stdout: expect.stringMatching(/^no datasets yet/) });
  const made = await datasets('upload', SAMPLE);
  expect(made).toMatchObject({ code: 0, stderr: '' });
  const id = /^uploaded ink-wash as (dst_\w+) \(200 images, 4\.\d+ MB\)\n$/.exec(made.stdout)?.[1];
  expect(id).toBeDefined();

  expect((await datasets('list')).stdout).toMatch(new RegExp(`^${id} +ink-wash +200 +4\\.\\d+ MB +20`, 'm'));
  expect((await datasets('remove', id!)).stdout).toBe(`removed ${id}\n`);
  expect(await datasets('remove', id!)).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('(not_found)'),
  });
  expect((await api.store.list('')).objects).toEqual([]);
});

test('an archive is uploaded under a name of its own, and shown as JSON', async () => {
  const data = await sharp({ create: { width: 8, height: 8, channels: 3, background: 'red' } })
    .png()
    .toBuffer();
  const path = join(dir, 'My Pictures.zip');
  const pair = [
    { name: 'images/1.png', data },
    { name: 'prompts/1.txt', data: 'red' },
  ];
  await writeFile(path, zip(pair));
  const named = await datasets('upload', path, '--json');
  expect(Dataset.parse(JSON.parse(named.stdout))).toMatchObject({ name: 'my-pictures', items: 1 });
  const renamed = await datasets('upload', path, '--name', 'red', '--json');
  expect(Dataset.parse(JSON.parse(renamed.stdout)).name).toBe('red');
  expect(JSON.parse((await datasets('--json')).stdout)).toMatchObject({
    data: [{ name: 'my-pictures' }, { name: 'red' }],
  });
});

test('a large folder or archive is announced, sent as one archive and completed', async () => {
  const client = new StudioClient(api.url, KEY);
  const direct = await sendDataset(client, SAMPLE, { json: true });
  const announced = await sendDataset(client, SAMPLE, { json: true, name: 'large' }, 1_000_000);
  expect(announced).toMatchObject({ name: 'large', items: 200, files: direct.files });

  const path = join(dir, 'large.zip');
  const data = await sharp({ create: { width: 8, height: 8, channels: 3, background: 'red' } })
    .png()
    .toBuffer();
  const pair = [
    { name: 'images/1.png', data },
    { name: 'prompts/1.txt', data: 'red' },
  ];
  await writeFile(path, zip(pair));
  expect(await sendDataset(client, path, { json: true }, 1)).toMatchObject({ name: 'large', items: 1 });
  await writeFile(path, zip(pair.slice(1)));
  const refused = sendDataset(client, path, { json: true }, 1);
  await expect(refused).rejects.toMatchObject({ code: 'dataset_invalid' });
  const sent = (await api.store.list('')).objects.filter(({ key }) => key.endsWith('.zip'));
  expect(sent).toEqual([]);
});

test('what is wrong is listed file by file; what is no dataset is not sent', async () => {
  const broken = join(dir, 'broken');
  await cp(SAMPLE, broken, { recursive: true });
  await rm(join(broken, 'prompts', '007.txt'));
  await rm(join(broken, 'images', '009.png'));
  await writeFile(join(broken, 'images', '009.png'), 'no picture');
  const refused = await datasets('upload', broken);
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain('error 2 problems; images/007.png');
  expect(refused.stderr).toContain('  images/007.png: has no prompt: prompts/007.txt is missing\n');
  expect(refused.stderr).toContain('  images/009.png: is not a PNG, JPEG or WebP picture\n');

  expect(await datasets('upload', join(dir, 'nowhere'))).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('(file_missing)'),
  });
  expect((await datasets('upload', dir)).stderr).toContain('has no folder images');
});
