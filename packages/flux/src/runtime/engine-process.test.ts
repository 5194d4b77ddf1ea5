import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { tinyModel } from '../../../../test/golden/support.ts';
import type { LoadOptions } from '../model.ts';
import { EngineProcess } from './engine-process.ts';

const REQUEST = { prompt: 'a red apple', width: 64, height: 48, steps: 4, guidance: 3.5, seed: 42 };

let cacheDir: string;
let engine: EngineProcess;
let logged: string[];

beforeAll(async () => {
  cacheDir = await mkdtemp(join(tmpdir(), 'atelier-engine-'));
});
afterAll(() => rm(cacheDir, { recursive: true }));
beforeEach(() => {
  logged = [];
  engine = EngineProcess.spawn({ onLog: (line) => logged.push(line) });
});
afterEach(async () => {
  engine.kill();
  await engine.exited;
});

async function tiny(): Promise<LoadOptions> {
  return { ...(await tinyModel('tiny-dev')), name: 'tiny-dev', cacheDir };
}

test('loads, reports progress and gives the same bytes for the same request', async () => {
  const { loadMs } = await engine.load(await tiny());
  expect(loadMs).toBeGreaterThan(0);
  const seen: string[] = [];
  const first = await engine.generate(REQUEST, {
    onProgress: ({ phase, step, steps }) => seen.push(`${phase} ${step}/${steps}`),
  });
  expect(seen).toEqual([
    'text 0/4',
    'denoise 1/4',
    'denoise 2/4',
    'denoise 3/4',
    'denoise 4/4',
    'decode 4/4',
  ]);
  expect(first).toMatchObject({ width: 64, height: 48, seed: 42 });
  expect(first.pixels.length).toBe(64 * 48 * 3);
  const second = await engine.generate(REQUEST);
  expect(Buffer.from(second.pixels).equals(Buffer.from(first.pixels))).toBe(true);
  expect(await engine.stats()).toMatchObject({
    pid: engine.pid,
    provider: 'cpu',
    model: 'tiny-dev',
    generated: 2,
  });
  expect(logged).toEqual([]);
});

test('a canceled picture stops at the next step and the engine goes on', async () => {
  await engine.load(await tiny());
  const abort = new AbortController();
  let last = 0;
  const canceled = engine.generate(
    { ...REQUEST, steps: 50 },
    {
      signal: abort.signal,
      onProgress: ({ step }) => {
        last = step;
        if (step === 2) abort.abort();
      },
    },
  );
  await expect(canceled).rejects.toMatchObject({ code: 'canceled' });
  expect(last).toBeLessThan(50);
  await expect(engine.generate(REQUEST)).resolves.toMatchObject({ width: 64 });
});

test('an aborted signal starts nothing', async () => {
  await expect(engine.generate(REQUEST, { signal: AbortSignal.abort() })).rejects.toMatchObject({
    code: 'canceled',
  });
});

test('a killed engine rejects what is open and what comes later', async () => {
  await engine.load(await tiny());
  const open = engine.generate({ ...REQUEST, steps: 50 }, { onProgress: () => engine.kill() });
  await expect(open).rejects.toMatchObject({ code: 'engine_crashed', details: { signal: 'SIGKILL' } });
  await expect(engine.generate(REQUEST)).rejects.toMatchObject({ code: 'engine_crashed' });
});

test('close lets no process behind', async () => {
  await engine.close();
  expect(await engine.exited).toEqual({ code: 0, signal: null });
});

test('a broken checkpoint is refused with its reason and the engine can load another', async () => {
  const good = await tiny();
  const broken = { ...good, files: { ...good.files, transformer: good.files.tokenizer } };
  await expect(engine.load(broken)).rejects.toMatchObject({
    code: expect.stringMatching(/^checkpoint_/) as string,
  });
  await expect(engine.generate(REQUEST)).rejects.toMatchObject({
    code: 'request_invalid',
    message: 'no model is loaded: send load first',
  });
  await expect(engine.load(good)).resolves.toBeDefined();
});

test('a bad request names the field', async () => {
  await engine.load(await tiny());
  await expect(engine.generate({ ...REQUEST, width: 63 })).rejects.toMatchObject({
    code: 'request_invalid',
    message: 'width: found 63, allowed are multiples of 8',
  });
});
