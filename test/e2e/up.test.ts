import { type ChildProcess, spawn } from 'node:child_process';
import { cp, mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { GenerationJob } from '@atelier/shared';
import sharp from 'sharp';
import { writeSmallLora } from '../support/lora-files.ts';
import { descendants, survivors } from '../support/processes.ts';

const PROJECT = join(import.meta.dirname, '..', '..');
const MAIN = join(PROJECT, 'apps', 'cli', 'src', 'main.ts');

let scratch: string;
const started: ChildProcess[] = [];
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'atelier-up-'));
});
afterAll(async () => {
  // Only what a failed test left behind is still there; its parts end with it.
  const pids = started.flatMap(({ pid }) => (pid === undefined ? [] : [pid, ...descendants(pid)]));
  for (const child of started) child.kill('SIGKILL');
  await survivors(pids, 15_000);
  await rm(scratch, { recursive: true, force: true });
});

interface StudioUnderTest {
  child: ChildProcess;
  url: string;
  /** Process ids of the parts that it names. */
  parts: Record<string, number>;
  /** Of everything that it started: services, Redis, watchers, the engine. */
  pids: number[];
  exited: Promise<{ code: number | null; output: string }>;
}

function atelier(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const inherited = { ...process.env };
  // Those of the person who runs the tests would lead to another Redis or another folder.
  for (const name of Object.keys(inherited))
    if (/^(ATELIER_|S3_|REDIS_URL$)/.test(name)) delete inherited[name];
  const child = spawn(process.execPath, [MAIN, ...args], {
    cwd: PROJECT,
    env: { ...inherited, ATELIER_PORT: '0', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  started.push(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += String(chunk)));
  const exited = new Promise<{ code: number | null; output: string }>((resolve) =>
    child.once('close', (code) => resolve({ code, output })),
  );
  return { child, exited };
}

/** Lines of stdout as they come; `next` resolves with the first group of the first one that matches. */
function lines(child: ReturnType<typeof atelier>['child']) {
  const seen: string[] = [];
  const waiting = new Set<() => boolean>();
  createInterface({ input: child.stdout }).on('line', (line) => {
    seen.push(line);
    for (const look of waiting) look();
  });
  return {
    next: (pattern: RegExp) =>
      new Promise<string>((resolve, reject) => {
        const look = () => {
          const match = seen.map((line) => pattern.exec(line)).find((found) => found !== null);
          if (match) resolve(match[1]!);
          return match !== undefined;
        };
        if (look()) return;
        waiting.add(look);
        child.once('close', () => reject(new Error(`ended without ${pattern}:\n${seen.join('\n')}`)));
      }),
  };
}

async function up(dataDir: string): Promise<StudioUnderTest> {
  const { child, exited } = atelier(['up', '--json'], { ATELIER_DATA_DIR: dataDir });
  const ready = lines(child).next(/^(\{"ready".*)/);
  const early = exited.then(({ output }) => Promise.reject(new Error(`the studio ended early:\n${output}`)));
  const { url, pids: parts } = JSON.parse(await Promise.race([ready, early])) as {
    url: string;
    pids: Record<string, number>;
  };
  early.catch(() => {});
  return { child, url, parts, pids: descendants(child.pid!), exited };
}

async function generate(url: string, body: object): Promise<GenerationJob> {
  const response = await fetch(`${url}/v1/generations`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', prefer: 'wait=60' },
    body: JSON.stringify(body),
  });
  expect(response.status).toBe(200);
  return (await response.json()) as GenerationJob;
}

test('a prompt becomes a picture; Ctrl-C leaves no process; a restart still knows the job', async () => {
  const dataDir = join(scratch, 'data');
  const first = await up(dataDir);
  const job = await generate(first.url, { prompt: 'a red apple on a blue background', seed: 1, steps: 4 });
  expect(job).toMatchObject({ status: 'succeeded', output: { images: [{ seed: 1 }] } });
  const picture = job.output!.images[0]!;
  const png = await (await fetch(new URL(picture.url, first.url))).arrayBuffer();
  const { width, height, format } = await sharp(png).metadata();
  expect({ width, height, format }).toEqual({ width: picture.width, height: picture.height, format: 'png' });
  const { channels } = await sharp(png).stats();
  expect(Math.max(...channels.map(({ stdev }) => stdev))).toBeGreaterThan(5);

  // The engine has been started by the worker in the meantime.
  const pids = [...new Set([...first.pids, ...descendants(first.child.pid!)])];
  first.child.kill('SIGINT');
  const { code, output } = await first.exited;
  expect({ code, output: code === 0 ? '' : output }).toEqual({ code: 0, output: '' });
  expect(await survivors(pids, 2000)).toEqual([]);

  const second = await up(dataDir);
  const again = (await (await fetch(`${second.url}/v1/generations/${job.id}`)).json()) as GenerationJob;
  expect(again).toMatchObject({
    id: job.id,
    status: 'succeeded',
    output: { images: [{ sha256: picture.sha256 }] },
  });
  const kept = await fetch(new URL(again.output!.images[0]!.url, second.url));
  expect(Buffer.from(await kept.arrayBuffer()).equals(Buffer.from(png))).toBe(true);

  // A SIGKILL leaves no time to stop anything: the parts have to notice by themselves.
  const rest = descendants(second.child.pid!);
  expect(rest.length).toBeGreaterThan(3);
  second.child.kill('SIGKILL');
  expect(await survivors(rest, 15_000)).toEqual([]);
}, 180_000);

test('the terminal shows where it is and what it paints; the commands talk to it', async () => {
  const file = join(scratch, 'rocket.png');
  const { child, exited } = atelier(['up'], { ATELIER_DATA_DIR: join(scratch, 'plain') });
  const shown = lines(child);
  const url = await shown.next(/is ready on (\S+)/);

  const made = await atelier([
    'generate',
    'a rocket',
    '--seed',
    '7',
    '--steps',
    '4',
    '--out',
    file,
    '--url',
    url,
  ]).exited;
  expect(made).toMatchObject({
    code: 0,
    output: expect.stringContaining(`saved ${file} (128 x 128, seed 7`),
  });
  expect((await sharp(file).metadata()).format).toBe('png');
  const picture = await shown.next(/^gpu-worker done gen_\w+ "a rocket" in .*: (\S+)$/);
  expect((await fetch(picture)).headers.get('content-type')).toBe('image/png');

  const listed = await atelier(['jobs', '--json', '--url', url]).exited;
  expect(JSON.parse(listed.output)).toMatchObject({
    data: [{ status: 'succeeded', input: { prompt: 'a rocket' } }],
  });
  const refused = await atelier(['generate', 'a rocket', '--steps', '99', '--url', url]).exited;
  expect(refused.code).toBe(1);
  expect(refused.output).toMatch(/^error .*steps.*1 to 50.* \(validation_failed\)$/m);

  const lora = await writeSmallLora(join(scratch, 'Ink Wash.safetensors'), { scale: 40 });
  const at = ['--url', url];
  const imported = await atelier([
    'loras',
    'import',
    lora,
    '--weight',
    '0.7',
    '--tag',
    'a',
    '--tag',
    'b',
    ...at,
  ]).exited;
  expect(imported.output).toContain('Ink Wash.safetensors imported as ink-wash@1 (peft, rank 2, 1 module)');
  expect((await atelier(['loras', ...at]).exited).output).toMatch(/^ink-wash@1 +2 +4\.\d+ kB +0\.7 +a b$/m);
  const request = 'generate rocket --seed 7 --steps 4 --json --style ink-wash --style ink-wash@1:-0.2';
  const styled = await atelier([...request.split(' '), '--out', file, ...at]).exited;
  expect(JSON.parse(styled.output)).toMatchObject({
    job: {
      input: {
        styles: [
          { lora: 'ink-wash@1', weight: 0.7 },
          { lora: 'ink-wash@1', weight: -0.2 },
        ],
      },
    },
  });
  const copy = join(scratch, 'copy.safetensors');
  expect((await atelier(['loras', 'export', 'ink-wash@1', '--out', copy, ...at]).exited).code).toBe(0);
  expect((await readFile(copy)).equals(await readFile(lora))).toBe(true);
  expect((await atelier(['loras', 'remove', 'ink-wash', ...at]).exited).output).toBe('removed ink-wash\n');
  const gone = await atelier(['loras', 'show', 'ink-wash', ...at]).exited;
  expect(gone).toMatchObject({ code: 1, output: expect.stringContaining('(not_found)') });

  child.kill('SIGTERM');
  const { code, output } = await exited;
  expect({ code, output: output.split('\n').at(-2) }).toEqual({ code: 0, output: 'Stopped.' });
}, 120_000);

test('a folder of pictures becomes a style by one command, and the command that it names uses it', async () => {
  const folder = join(scratch, 'Few Inks');
  for (const stem of ['001', '002', '003', '004']) {
    for (const file of [`images/${stem}.png`, `prompts/${stem}.txt`])
      await cp(join(PROJECT, 'examples', 'ink-wash', file), join(folder, file));
  }
  const { child, url, exited } = await up(join(scratch, 'train'));
  const recipe = '--max-epochs 2 --batch-size 2 --gradient-accumulation-steps 1 --resolution 64'.split(' ');
  const trained = await atelier(['train', folder, '--name', 'ink', ...recipe, '--url', url]).exited;
  expect(trained).toMatchObject({ code: 0, output: expect.stringContaining('uploaded few-inks as dst_') });
  expect(trained.output).toMatch(/^trained ink@1 \(4 steps, .*loss 0\.\d+ to 0\.\d+\)$/m);
  const [, ...command] = /^use it: (atelier generate) "(.+)" (--style) (\S+)$/m.exec(trained.output)!;
  const [, prompt, ...style] = command;
  const file = join(scratch, 'styled.png');
  const request = ['generate', prompt!, ...style, '--steps', '2', '--out', file, '--json', '--url', url];
  const made = await atelier(request).exited;
  expect(JSON.parse(made.output)).toMatchObject({ job: { input: { styles: [{ lora: 'ink@1' }] } } });
  const refused = await atelier(['train', folder, '--name', 'Ink Wash', '--url', url]).exited;
  expect(refused).toMatchObject({ code: 1, output: expect.stringContaining('(validation_failed)') });
  child.kill('SIGTERM');
  expect((await exited).code).toBe(0);
}, 120_000);

test('a part that dies is named, and takes the others with it', async () => {
  const studio = await up(join(scratch, 'dies'));
  process.kill(studio.parts['gpu-worker']!, 'SIGKILL');
  const { code, output } = await studio.exited;
  expect(code).toBe(1);
  expect(output).toContain('gpu-worker was killed by SIGKILL');
  expect(await survivors(studio.pids, 2000)).toEqual([]);
}, 120_000);

test('a port in use is refused before anything starts, with the way out', async () => {
  const other = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => other.once('listening', resolve));
  const { port } = other.address() as AddressInfo;
  const { exited } = atelier(['up'], { ATELIER_PORT: String(port), ATELIER_DATA_DIR: join(scratch, 'port') });
  const { code, output } = await exited;
  other.close();
  expect(code).toBe(1);
  expect(output).toContain(`ATELIER_PORT=${port + 1} npm start`);
});

test('commands say what is wrong when no studio runs', async () => {
  const { exited } = atelier(['jobs', '--url', 'http://127.0.0.1:1']);
  const { code, output } = await exited;
  expect(code).toBe(1);
  expect(output).toContain('No atelier answers at http://127.0.0.1:1. Start it with "npm start"');
});
