import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { tinyModel } from '../../../../test/golden/support.ts';
import { readLora } from '../lora/read.ts';
import { EngineProcess } from '../runtime/engine-process.ts';
import { TRAINING_DEFAULTS } from './options.ts';
import type { TrainEvent, TrainRequest } from './train.ts';

let dir: string;
let engine: EngineProcess;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-train-'));
  await mkdir(join(dir, 'data', 'images'), { recursive: true });
  await mkdir(join(dir, 'data', 'prompts'));
  for (let i = 0; i < 6; i++) {
    const stem = String(i + 1).padStart(3, '0');
    const background = { r: 40 * i, g: 255 - 30 * i, b: 90 };
    const picture = sharp({ create: { width: 64 + 8 * i, height: 72, channels: 3, background } });
    await picture.png().toFile(join(dir, 'data', 'images', `${stem}.png`));
    await writeFile(join(dir, 'data', 'prompts', `${stem}.txt`), `a picture number ${i}`);
  }
});
afterAll(() => rm(dir, { recursive: true }));
beforeEach(() => {
  engine = EngineProcess.spawn();
});
afterEach(async () => {
  engine.kill();
  await engine.exited;
});

async function request(name: string): Promise<TrainRequest> {
  return {
    model: { ...(await tinyModel('tiny-dev')), name: 'tiny-dev', cacheDir: join(dir, 'cache') },
    dataset: join(dir, 'data'),
    outputDir: join(dir, name),
    options: {
      ...TRAINING_DEFAULTS,
      batchSize: 1,
      gradientAccumulationSteps: 2,
      maxEpochs: 4,
      learningRate: 1e-2,
    },
    resolution: 64,
    validationEvery: 3,
    saveEveryEpochs: 2,
  };
}

test('a folder becomes a LoRA; stopped in the middle and gone on with, it becomes the same one', async () => {
  const events: TrainEvent[] = [];
  const straight = await engine.train(await request('straight'), { onEvent: (event) => events.push(event) });
  expect(events.find(({ type }) => type === 'ready')).toMatchObject({
    pictures: 4,
    validation: 2,
    steps: 8,
    skipped: [],
  });
  expect(events.filter(({ type }) => type === 'step')).toHaveLength(8);
  expect(events.flatMap((event) => (event.type === 'checkpoint' ? [event.epoch] : []))).toEqual([2, 4]);
  expect(events.flatMap((event) => (event.type === 'validation' ? [event.epoch] : []))).toEqual([0, 2, 4]);
  expect(straight).toMatchObject({ steps: 8, loss: expect.any(Number) as number });
  expect((await readLora(straight.loraFile, null)).transformer.size).toBe(25);

  const stop = new AbortController();
  const stopped = engine.train(await request('stopped'), {
    signal: stop.signal,
    onEvent: (event) => event.type === 'step' && event.step === 3 && stop.abort(),
  });
  const error = await stopped.then(
    () => null,
    (reason: { code: string; details: { checkpoint: string } }) => reason,
  );
  expect(error).toMatchObject({ code: 'canceled' });
  const resumed = await engine.train({
    ...(await request('stopped')),
    resumeFrom: error!.details.checkpoint,
  });
  expect(await readFile(resumed.loraFile)).toEqual(await readFile(straight.loraFile));
});

test('a bad dataset is refused with the names of its files, and the engine goes on', async () => {
  await mkdir(join(dir, 'bad', 'images'), { recursive: true });
  await mkdir(join(dir, 'bad', 'prompts'));
  await writeFile(join(dir, 'bad', 'images', '001.png'), 'no picture');
  const refused = engine.train({ ...(await request('bad-out')), dataset: join(dir, 'bad') });
  await expect(refused).rejects.toMatchObject({
    code: 'dataset_invalid',
    message: expect.stringContaining('001') as string,
  });
  await expect(engine.stats()).resolves.toMatchObject({ model: null });
});
