import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FluxModel } from '../../packages/flux/src/model.ts';
import { generate, type EngineImage, type EngineRequest } from '../../packages/flux/src/pipeline.ts';
import type { Placement } from '../../packages/flux/src/runtime/placement.ts';
import { goldens, maxAbsError, rms, tinyModel, TINY_MODELS, TOLERANCE } from './support.ts';

type Call = EngineRequest & { strength?: number };

let cacheDir: string;
beforeAll(async () => {
  cacheDir = await mkdtemp(join(tmpdir(), 'atelier-golden-'));
});
afterAll(() => rm(cacheDir, { recursive: true }));

describe.each(TINY_MODELS)('%s', (name) => {
  test.each<Placement>(['expand', 'in-place'])(
    'text to image is FluxPipeline, weights %s',
    async (placement) => {
      const golden = await goldens(name);
      const model = await load(name, placement);
      const { latents, image } = await run(model, golden.json['txt2img'] as Call);
      await compare(golden, 'txt2img', latents, image);
      await model.release();
    },
  );

  test('a transformer quantised to fp8 draws nearly the same, and is quantised once', async () => {
    const golden = await goldens(name);
    const options = { ...(await tinyModel(name)), name, cacheDir, placement: 'fp8' as const };
    let prepared = 0;
    const model = await FluxModel.load(options, ({ done }) => (prepared = done));
    expect(prepared).toBeGreaterThan(0);
    const { latents } = await run(model, golden.json['txt2img'] as Call);
    const expected = (await golden.get(`txt2img/latents.${latents.length - 1}`)).data;
    const difference = latents.at(-1)!.map((value, i) => value - expected[i]!);
    // e4m3 has 3 bits of mantissa: the values differ, the picture stays.
    expect(rms(difference) / rms(expected)).toBeLessThan(0.25);
    expect(maxAbsError(latents.at(-1)!, expected)).toBeGreaterThan(TOLERANCE);
    await model.release();
    prepared = 0;
    await (await FluxModel.load(options, ({ done }) => (prepared = done))).release();
    expect(prepared).toBe(0);
  });

  test('image to image is FluxImg2ImgPipeline', async () => {
    const golden = await goldens(name);
    const model = await load(name, 'expand');
    const { strength, ...call } = golden.json['img2img'] as Call;
    const source = await golden.get('img2img/source_u8');
    const { latents, image } = await run(model, {
      ...call,
      image: { pixels: Uint8Array.from(source.data), strength: strength! },
    });
    await compare(golden, 'img2img', latents, image);
    await model.release();
  });

  test('the same request gives the same bytes', async () => {
    const golden = await goldens(name);
    const model = await load(name, 'expand');
    const call = golden.json['txt2img'] as Call;
    const [first, second] = [await run(model, call), await run(model, call)];
    expect(second.image.pixels).toEqual(first.image.pixels);
    await model.release();
  });

  test.each([
    [{ width: 31 }, /width: found 31, allowed are multiples of/],
    [{ height: 0 }, /height: found 0/],
    [{ steps: 0 }, /steps: found 0/],
    [{ seed: -1 }, /seed: found -1/],
    [{ guidance: NaN }, /guidance: found NaN/],
    [{ image: { pixels: new Uint8Array(5), strength: 0.5 } }, /image: found 5 bytes/],
  ])('refuses %j', async (wrong, message) => {
    const golden = await goldens(name);
    const model = await load(name, 'expand');
    await expect(run(model, { ...(golden.json['txt2img'] as Call), ...wrong })).rejects.toMatchObject({
      code: 'request_invalid',
      message: expect.stringMatching(message) as string,
    });
    await model.release();
  });
});

async function load(name: string, placement: Placement): Promise<FluxModel> {
  return FluxModel.load({ ...(await tinyModel(name)), name, cacheDir, placement });
}

/** Runs the pipeline to its end, keeping the latents after every step. */
async function run(model: FluxModel, call: Call): Promise<{ latents: Float32Array[]; image: EngineImage }> {
  const latents: Float32Array[] = [];
  const pipeline = generate(model, call);
  for (;;) {
    const next = await pipeline.next();
    if (next.done) return { latents, image: next.value };
    if (next.value.phase === 'denoise') latents.push(next.value.latents.slice());
  }
}

async function compare(
  golden: Awaited<ReturnType<typeof goldens>>,
  stage: string,
  latents: Float32Array[],
  image: EngineImage,
): Promise<void> {
  expect(latents.length).toBeGreaterThan(1);
  for (const [step, found] of latents.entries()) {
    const expected = (await golden.get(`${stage}/latents.${step}`)).data;
    const error = maxAbsError(found, expected) / Math.max(rms(expected), 1);
    expect({ step, close: error < TOLERANCE }).toEqual({ step, close: true });
  }
  const bytes = await golden.get(`${stage}/image_u8`);
  expect([image.height, image.width, 3]).toEqual(bytes.shape);
  // A value on the edge between two bytes may fall to either side.
  expect(maxAbsError(image.pixels, bytes.data)).toBeLessThanOrEqual(1);
}
