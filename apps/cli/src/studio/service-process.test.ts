import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isRunning, survivors } from '../../../../test/support/processes.ts';
import { claimPort } from './port.ts';
import { ServiceProcess } from './service-process.ts';

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'atelier-service-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

async function script(name: string, code: string): Promise<string> {
  const file = join(scratch, `${name}.mjs`);
  await writeFile(file, code);
  return file;
}

/** Starts a service and resolves with its first line. */
async function started(file: string, graceMs: number) {
  const lines: string[] = [];
  const first = Promise.withResolvers<void>();
  const onLine = (line: string) => {
    lines.push(line);
    first.resolve();
  };
  const service = new ServiceProcess(
    { name: 'api', script: file, graceMs },
    { cwd: scratch, env: process.env, onLine },
  );
  await first.promise;
  return { service, lines };
}

const STUBBORN = `process.on('SIGTERM', () => {}); setInterval(() => {}, 1000); console.log(process.pid);`;

test('a service gets time to finish, and its last lines are read', async () => {
  const code = `process.on('SIGTERM', () => setTimeout(() => { console.log('finished'); process.exit(3); }, 100));
    setInterval(() => {}, 1000); console.log('ready');`;
  const { service, lines } = await started(await script('polite', code), 10_000);
  await service.stop();
  expect(await service.exited).toEqual({ code: 3, signal: null });
  expect(lines).toEqual(['ready', 'finished']);
});

test('a service that does not finish in its time is killed', async () => {
  const { service } = await started(await script('stubborn', STUBBORN), 200);
  await service.stop();
  expect(await service.exited).toEqual({ code: null, signal: 'SIGKILL' });
});

test('watching its parent keeps no service alive that has finished', async () => {
  const { service } = await started(await script('short', `console.log('done');`), 10_000);
  expect(await service.exited).toEqual({ code: 0, signal: null });
});

describe('when its parent is killed', () => {
  /** Kills the parent of a service; returns the service if it still runs after the time. */
  async function orphan(name: string, code: string, timeoutMs: number): Promise<number[]> {
    const child = JSON.stringify(await script(name, code));
    const module = JSON.stringify(join(import.meta.dirname, 'service-process.ts'));
    const parentCode = `const { ServiceProcess } = await import(${module});
      const spec = { name: 'api', script: ${child}, graceMs: 1000 };
      new ServiceProcess(spec, { cwd: '.', env: process.env, onLine: (line) => console.log(line) });`;
    const parent = spawn(process.execPath, ['--input-type=module', '-e', parentCode], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const pid = Number(await new Promise((resolve) => parent.stdout.once('data', resolve)));
    expect(isRunning(pid)).toBe(true);
    parent.kill('SIGKILL');
    return survivors([pid], timeoutMs);
  }

  test('a service ends', async () => {
    const code = `setInterval(() => {}, 1000); console.log(process.pid);`;
    expect(await orphan('plain', code, 5000)).toEqual([]);
  });

  test('a service that writes while it ends finds no broken pipe', async () => {
    const code = `import { writeSync } from 'node:fs';
      process.on('SIGTERM', () => { for (;;) try { writeSync(1, 'bye'); process.exit(); } catch {} });
      setInterval(() => {}, 1000); console.log(process.pid);`;
    expect(await orphan('talkative', code, 5000)).toEqual([]);
  });

  test('a service that is stuck while it ends is killed', async () => {
    const code = `process.on('SIGTERM', () => { for (;;); }); setInterval(() => {}, 1000); console.log(process.pid);`;
    expect(await orphan('stuck', code, 15_000)).toEqual([]);
  });
});

test('a port in use is named together with the way out; 0 gives a free one', async () => {
  const other = createServer();
  const port = await claimPort('127.0.0.1', 0);
  expect(port).toBeGreaterThan(0);
  await new Promise<void>((resolve) => other.listen(port, '127.0.0.1', resolve));
  await expect(claimPort('127.0.0.1', port)).rejects.toMatchObject({
    code: 'port_in_use',
    message: expect.stringContaining(`ATELIER_PORT=${port + 1} npm start`),
  });
  other.close();
});
