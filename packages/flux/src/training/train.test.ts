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

const samplesOf = (events: TrainEvent[]) =>
  events.flatMap((event) => (event.type === 'sample' ? [event] : []));

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

test('samples are the pictures that the checkpoint draws as a style, and leave the training as it is', async () => {
  const samples = { prompts: ['a picture', 'übermäßig 絵'], seed: 7, steps: 2, guidance: 3.5 };
  const plain = await engine.train(await request('plain'));
  const events: TrainEvent[] = [];
  const drawn = await engine.train(
    { ...(await request('drawn')), samples },
    { onEvent: (event) => events.push(event) },
  );
  expect(await readFile(drawn.loraFile)).toEqual(await readFile(plain.loraFile));
  const order = events.flatMap(({ type }) => (/step|check|sample|valid/.test(type) ? [type] : []));
  const shown = ['sample', 'sample', 'validation'];
  const steps = ['step', 'step', 'step', 'step', 'checkpoint', ...shown];
  expect(order).toEqual([...shown, ...steps, ...steps]);
  const pictures = samplesOf(events);
  expect(pictures.map(({ epoch, step, index, seed }) => [epoch, step, index, seed])).toEqual([
    [0, 0, 0, 7],
    [0, 0, 1, 8],
    [2, 4, 0, 7],
    [2, 4, 1, 8],
    [4, 8, 0, 7],
    [4, 8, 1, 8],
  ]);

  await engine.load((await request('drawn')).model);
  for (const { step, prompt, seed, width, height, pixels } of pictures) {
    const file = join(dir, 'drawn', `step-00000${step}`, 'lora.safetensors');
    const styles = step === 0 ? [] : [{ key: String(step), file, weight: 1 }];
    const { steps: count, guidance } = samples;
    const image = await engine.generate({ prompt, seed, width, height, steps: count, guidance, styles });
    expect(Buffer.compare(image.pixels, pixels)).toBe(0);
  }
  expect(Buffer.compare(pictures[0]!.pixels, pictures[4]!.pixels)).not.toBe(0);

  // Killed between a checkpoint and its samples, the next training announces the one and draws the others.
  const again: TrainEvent[] = [];
  await engine.train(
    { ...(await request('drawn')), samples, resumeFrom: join(dir, 'drawn', 'step-000004') },
    { onEvent: (event) => again.push(event) },
  );
  expect(again.find(({ type }) => type === 'ready')).toMatchObject({ step: 4, epoch: 2 });
  expect(again.flatMap((event) => (event.type === 'checkpoint' ? [event.step] : []))).toEqual([4, 8]);
  expect(samplesOf(again)).toEqual(pictures.slice(2));
});

test('a training that is canceled while it draws names the checkpoint that it has', async () => {
  const samples = { prompts: ['a', 'b', 'c', 'd'], seed: 7, steps: 50, guidance: 3.5 };
  const cancelAt = (type: TrainEvent['type'], name: string) => async (): Promise<unknown> => {
    const stop = new AbortController();
    const events: TrainEvent[] = [];
    const training = engine.train(
      { ...(await request(name)), samples: { ...samples, steps: type === 'checkpoint' ? 4 : 50 } },
      {
        signal: stop.signal,
        onEvent: (event) => {
          events.push(event);
          if (event.type === type) stop.abort();
        },
      },
    );
    await expect(training).rejects.toMatchObject({ code: 'canceled' });
    expect(events.at(-1)!.type).toBe(type);
    return training.catch((error: { details: unknown }) => error.details);
  };
  expect(await cancelAt('ready', 'canceled-first')()).toEqual({});
  expect(await cancelAt('checkpoint', 'canceled-later')()).toEqual({
    checkpoint: join(dir, 'canceled-later', 'step-000004'),
  });
});

test('a learning rate without measure ends the training with the reason', async () => {
  const base = await request('diverged');
  const options = { ...base.options, learningRate: 1e30, maxGradNorm: 0 };
  await expect(engine.train({ ...base, options })).rejects.toMatchObject({
    code: 'request_invalid',
    message: expect.stringContaining('diverged') as string,
  });
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
