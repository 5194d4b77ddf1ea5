import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import sharp from 'sharp';
import { tinyModel } from '../../../../test/golden/support.ts';
import { TRAINING_DEFAULTS } from './options.ts';
import { train, type TrainEvent, type TrainRequest } from './train.ts';
import { deviceWorkplace } from './workplace.ts';

/*
 * What a training does on a device, on the CPU provider: it takes the same graphs, and has no memory of its own to
 * run out of.
 */

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-train-device-'));
  await mkdir(join(dir, 'data', 'images'), { recursive: true });
  await mkdir(join(dir, 'data', 'prompts'));
  for (let i = 0; i < 5; i++) {
    const stem = String(i + 1).padStart(3, '0');
    const background = { r: 40 * i, g: 255 - 30 * i, b: 90 };
    const picture = sharp({ create: { width: 64, height: 64 + 8 * i, channels: 3, background } });
    await picture.png().toFile(join(dir, 'data', 'images', `${stem}.png`));
    await writeFile(join(dir, 'data', 'prompts', `${stem}.txt`), `a picture number ${i}`);
  }
});
afterAll(() => rm(dir, { recursive: true }));

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
    resolution: 32,
    validationEvery: 5,
    saveEveryEpochs: 2,
    samples: { prompts: ['a picture'], seed: 7, steps: 2, guidance: 3.5 },
  };
}

/** As on a device with so many bytes of free memory. */
function placeOn(freeBytes: number): Parameters<typeof train>[3] {
  const memory = { totalBytes: freeBytes, freeBytes };
  const device = { provider: 'cpu' as const, name: 'the processor in a device’s place', reason: '', memory };
  return ({ model, options, resolution }, opened, targets) => {
    const { loraRank: rank, loraAlpha } = options;
    const shapes = targets.map((target) => ({ ...target, rank, scale: loraAlpha / rank }));
    return deviceWorkplace(opened, { ...model, device }, options, shapes, resolution);
  };
}

const ENOUGH = 4 * 2 ** 30;

test('a LoRA is trained in fp16, its samples drawn in between; stopped and gone on with, it becomes the same one', async () => {
  const events: TrainEvent[] = [];
  const straight = await train(
    await request('straight'),
    (event) => events.push(event),
    undefined,
    placeOn(ENOUGH),
  );
  expect(events[0]).toMatchObject({
    type: 'placed',
    plan: expect.stringMatching(/needs .* GiB free/) as string,
  });
  expect(events.flatMap((event) => (event.type === 'sample' ? [event.step] : []))).toEqual([0, 4, 8]);
  const pixels = events.flatMap((event) => (event.type === 'sample' ? [Buffer.from(event.pixels)] : []));
  expect(pixels[0]!.equals(pixels[2]!)).toBe(false);
  const losses = events.flatMap((event) => (event.type === 'validation' ? [event.loss] : []));
  expect(losses).toHaveLength(3);
  expect(losses.every((loss) => loss > 0 && loss < 10)).toBe(true);

  // The same training on the host, in fp32.
  const onHost: TrainEvent[] = [];
  const hosted = await request('host');
  await train({ ...hosted, options: { ...hosted.options, lossScaling: 'dynamic' } }, (event) =>
    onHost.push(event),
  );
  const norms = [events, onHost].map((all) =>
    all.flatMap((event) => (event.type === 'step' ? [event.gradientNorm] : [])),
  ) as [number[], number[]];
  expect(norms[0]).toHaveLength(8);
  expect(norms[0][0]! / norms[1][0]!).toBeCloseTo(1, 1);

  const stop = new AbortController();
  const stopped = train(
    await request('stopped'),
    (event) => event.type === 'step' && event.step === 3 && stop.abort(),
    stop.signal,
    placeOn(ENOUGH),
  );
  const error = await stopped.then(
    () => null,
    (reason: { code: string; details: { checkpoint: string } }) => reason,
  );
  expect(error).toMatchObject({ code: 'canceled' });
  const again = { ...(await request('stopped')), resumeFrom: error!.details.checkpoint };
  const resumed = await train(again, () => {}, undefined, placeOn(ENOUGH));
  expect(await readFile(resumed.loraFile)).toEqual(await readFile(straight.loraFile));
});

test('a device without room is refused before anything is encoded, with what would be needed', async () => {
  const events: TrainEvent[] = [];
  const training = train(await request('small'), (event) => events.push(event), undefined, placeOn(2 ** 29));
  await expect(training).rejects.toMatchObject({
    code: 'device_too_small',
    message: expect.stringMatching(
      /0\.50 GiB of free memory; training at \d+ image tokens needs 0\.\d\d GiB/,
    ) as string,
  });
  expect(events).toEqual([]);
});
