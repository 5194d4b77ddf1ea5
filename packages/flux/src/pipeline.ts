import { FluxError } from './errors.ts';
import type { Style } from './lora/types.ts';
import type { Variant } from './lora/variants.ts';
import type { FluxModel } from './model.ts';
import { denoise } from './sampling/denoise.ts';
import { addNoise, packLatents, PATCH, unpackLatents, type LatentSize } from './sampling/latents.ts';
import { TorchGenerator } from './sampling/random.ts';
import { sigmaSchedule, startStep } from './sampling/schedule.ts';
import type { TextEncoder } from './text/encoder.ts';
import { fromRgb8, toRgb8 } from './vae/pixels.ts';

export interface EngineRequest {
  prompt: string;
  /** Pixels; multiples of {@link FluxModel.sizeMultiple}. */
  width: number;
  height: number;
  /** Length of the schedule; image-to-image runs about `steps * strength` of them. */
  steps: number;
  /** Distilled guidance; ignored by models without a guidance embedding. */
  guidance: number;
  /** 0 to 2^53 - 1; starts torch's CPU generator. */
  seed: number;
  /** LoRAs that act on this picture, in any order. */
  styles?: readonly Style[];
  /** Picture to start from: RGB bytes [height, width, 3]; strength in (0, 1], where 1 ignores it. */
  image?: { pixels: Uint8Array; strength: number };
}

/** What {@link generate} needs of a model. */
export interface PictureModel extends Pick<
  FluxModel,
  'scheduler' | 'vaeSpec' | 'sizeMultiple' | 'decode' | 'encode'
> {
  variant(styles: readonly Style[]): Promise<Omit<Variant, 'text'> & { text: Pick<TextEncoder, 'encode'> }>;
}

export interface EngineTimings {
  /** Making the styles' form of the model; about 0 when it was ready. */
  style_ms: number;
  text_ms: number;
  denoise_ms: number;
  decode_ms: number;
  total_ms: number;
}

export interface EngineImage {
  /** RGB bytes [height, width, 3]. */
  pixels: Uint8Array;
  width: number;
  height: number;
  seed: number;
  timings: EngineTimings;
}

export type PipelineEvent =
  | { phase: 'text' }
  /** After a step, or several at once. `latents` are packed, [tokens, channels]. */
  | { phase: 'denoise'; step: number; steps: number; sigma: number; latents: Float32Array }
  | { phase: 'decode' };

/**
 * Makes one picture. Yields before the text is encoded, after each denoising step and before decoding, so that the
 * caller can report progress or stop by not asking for more; returns the picture.
 * @throws FluxError request_invalid, engine_failed, out_of_memory, and what reading a style's file throws
 */
export async function* generate(
  model: PictureModel,
  request: EngineRequest,
): AsyncGenerator<PipelineEvent, EngineImage> {
  const size = latentSize(model, request);
  const started = performance.now();
  yield { phase: 'text' };
  const variant = await model.variant(request.styles ?? []);
  const styled = performance.now();
  const { text, pooled } = await variant.text.encode(request.prompt);
  const encoded = performance.now();

  const grid = { height: size.height / PATCH, width: size.width / PATCH };
  const sigmas = sigmaSchedule(model.scheduler, request.steps, grid.height * grid.width);
  const { latents, first } = await startingPoint(model, request, size, sigmas);
  let last = latents;
  for await (const step of denoise(variant, {
    latents: packLatents(latents, size),
    text,
    pooled,
    guidance: request.guidance,
    sigmas,
    first,
    grid,
  })) {
    last = step.latents;
    yield { phase: 'denoise', ...step };
  }
  const denoised = performance.now();

  yield { phase: 'decode' };
  const image = await model.decode(unpackLatents(last, size), size);
  const pixels = toRgb8(image, request.width, request.height);
  const done = performance.now();
  return {
    pixels,
    width: request.width,
    height: request.height,
    seed: request.seed,
    timings: {
      style_ms: styled - started,
      text_ms: encoded - styled,
      denoise_ms: denoised - encoded,
      decode_ms: done - denoised,
      total_ms: done - started,
    },
  };
}

/** Noise for a run from text; for image-to-image the picture's latents with noise added up to the first sigma. */
async function startingPoint(
  model: PictureModel,
  request: EngineRequest,
  size: LatentSize,
  sigmas: Float32Array,
): Promise<{ latents: Float32Array; first: number }> {
  const generator = new TorchGenerator(request.seed);
  const count = size.channels * size.height * size.width;
  if (!request.image) return { latents: generator.randn(count), first: 0 };
  const first = startStep(request.steps, request.image.strength);
  // diffusers draws the encoder's sample before the noise, from the same generator.
  const sample = generator.randn(count);
  const pixels = fromRgb8(request.image.pixels, request.width, request.height);
  const image = await model.encode(pixels, request, sample);
  return { latents: addNoise(image, generator.randn(count), sigmas[first]!), first };
}

function latentSize(model: PictureModel, request: EngineRequest): LatentSize {
  const multiple = model.sizeMultiple;
  for (const side of ['width', 'height'] as const) {
    const found = request[side];
    if (!Number.isSafeInteger(found) || found < multiple || found % multiple !== 0)
      throw new FluxError('request_invalid', `${side}: found ${found}, allowed are multiples of ${multiple}`);
  }
  if (!Number.isSafeInteger(request.steps) || request.steps < 1)
    throw new FluxError('request_invalid', `steps: found ${request.steps}, allowed are whole numbers from 1`);
  if (!Number.isSafeInteger(request.seed) || request.seed < 0)
    throw new FluxError(
      'request_invalid',
      `seed: found ${request.seed}, allowed are whole numbers from 0 to 2^53 - 1`,
    );
  if (!Number.isFinite(request.guidance))
    throw new FluxError('request_invalid', `guidance: found ${request.guidance}, allowed are finite numbers`);
  if (request.image) {
    const { pixels, strength } = request.image;
    const expected = request.width * request.height * 3;
    if (pixels.length !== expected)
      throw new FluxError(
        'request_invalid',
        `image: found ${pixels.length} bytes, expected ${expected} (RGB)`,
      );
    if (!(strength > 0 && strength <= 1))
      throw new FluxError(
        'request_invalid',
        `strength: found ${strength}, allowed are numbers above 0, up to 1`,
      );
  }
  const { scaleFactor, latentChannels } = model.vaeSpec;
  return {
    channels: latentChannels,
    height: request.height / scaleFactor,
    width: request.width / scaleFactor,
  };
}
