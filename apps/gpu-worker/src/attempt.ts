import { createHash } from 'node:crypto';
import { buffer } from 'node:stream/consumers';
import { FluxError } from '@atelier/flux';
import { AtelierError, ProgressReporter, whileStoreIsAway } from '@atelier/shared';
import type { Attempt, Catalog, GenerationRecord, JobStore, Logger, ObjectStore } from '@atelier/shared';
import type { Progress, StoredImage } from '@atelier/shared';
import type { EngineHost } from './engine-host.ts';
import type { EngineImage, EngineProgressListener } from './engine.ts';
import { FORMATS, decodeImage, encodeImage } from './images.ts';
import type { HeldStyles, StyleCache } from './style-cache.ts';

/** Why a running attempt is told to stop. */
export type StopReason = 'cancel' | 'give_back' | 'superseded';

export interface AttemptDeps {
  jobs: JobStore;
  store: ObjectStore;
  catalog: Catalog;
  engine: EngineHost;
  styles: StyleCache;
  log: Logger;
}

export type Phase =
  'load_ms' | 'style_ms' | 'text_ms' | 'denoise_ms' | 'decode_ms' | 'encode_ms' | 'upload_ms';

/** Where an attempt puts its images. No other attempt writes there, so a late one overwrites nothing. */
export function imageKey(attempt: Attempt, index: number, extension: string): string {
  return `tenants/${attempt.tenant}/generations/${attempt.id}/${attempt.token}/${index}.${extension}`;
}

/**
 * Makes the images of one attempt and stores them, adding each to `images`; the caller publishes them, or deletes
 * them when the attempt comes to nothing.
 * @returns milliseconds by phase
 * @throws FluxError or AtelierError; when `stop` aborted, whatever was interrupted
 */
export async function runAttempt(
  deps: AttemptDeps,
  record: GenerationRecord,
  attempt: Attempt,
  stop: AbortController,
  images: StoredImage[],
): Promise<Record<Phase, number>> {
  const { input } = record;
  const spent: Record<Phase, number> = {
    load_ms: 0,
    style_ms: 0,
    text_ms: 0,
    denoise_ms: 0,
    decode_ms: 0,
    encode_ms: 0,
    upload_ms: 0,
  };
  const progress = new ProgressReporter(async (value) => {
    const { result, record: current } = await deps.jobs.progress(attempt, value);
    if (result !== 'done') stop.abort('superseded' satisfies StopReason);
    else if (current.cancel_requested_at) stop.abort('cancel' satisfies StopReason);
  });
  const onEngineProgress = progressOf(input.count, images, (value, urgent) => progress.report(value, urgent));
  let held: HeldStyles | null = null;
  try {
    spent.load_ms = await deps.engine.ensure(deps.catalog.get(input.model));
    held = await holdStyles(deps, record, spent, stop.signal);
    const start = input.image && {
      pixels: await loadInitImage(deps, record, stop.signal),
      strength: input.image.strength,
    };
    for (let index = 0; index < input.count; index++) {
      stop.signal.throwIfAborted();
      const image = await deps.engine.generate(
        {
          prompt: input.prompt,
          width: input.width,
          height: input.height,
          steps: input.steps,
          guidance: input.guidance,
          seed: input.seed + index,
          ...(held.styles.length > 0 ? { styles: held.styles } : {}),
          ...(start ? { image: start } : {}),
        },
        { onProgress: onEngineProgress, signal: stop.signal },
      );
      for (const phase of ['style_ms', 'text_ms', 'denoise_ms', 'decode_ms'] as const)
        spent[phase] += image.timings[phase];
      images.push(await storeImage(deps, record, attempt, index, image, spent, stop.signal));
    }
    return spent;
  } catch (error) {
    if (!(error instanceof FluxError) || !held) throw error;
    throw new FluxError(error.code, held.named(error.message), { cause: error });
  } finally {
    held?.release();
    progress.stop();
  }
}

async function holdStyles(
  deps: AttemptDeps,
  { input, tenant }: GenerationRecord,
  spent: Record<Phase, number>,
  signal: AbortSignal,
): Promise<HeldStyles> {
  const started = performance.now();
  const held = await whileStoreIsAway(
    () => deps.styles.hold(tenant, input.styles, signal),
    signal,
    (err) => deps.log.warn({ err }, 'waiting for the object store'),
  );
  spent.style_ms += performance.now() - started;
  return held;
}

async function storeImage(
  deps: AttemptDeps,
  record: GenerationRecord,
  attempt: Attempt,
  index: number,
  image: EngineImage,
  spent: Record<Phase, number>,
  signal: AbortSignal,
): Promise<StoredImage> {
  const { contentType, extension } = FORMATS[record.input.format];
  const encoding = performance.now();
  const file = await encodeImage(image, record.input.format);
  const uploading = performance.now();
  const key = imageKey(attempt, index, extension);
  await whileStoreIsAway(
    () => deps.store.put(key, file, { contentType }),
    signal,
    (err) => deps.log.warn({ err, key }, 'waiting for the object store'),
  );
  spent.encode_ms += uploading - encoding;
  spent.upload_ms += performance.now() - uploading;
  return {
    key,
    width: image.width,
    height: image.height,
    seed: image.seed,
    sha256: createHash('sha256').update(file).digest('hex'),
    content_type: contentType,
  };
}

async function loadInitImage(
  deps: AttemptDeps,
  { input }: GenerationRecord,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const { key } = input.image!;
  const file = await whileStoreIsAway(
    async () => {
      const object = await deps.store.get(key);
      return object && buffer(object.body);
    },
    signal,
    (err) => deps.log.warn({ err, key }, 'waiting for the object store'),
  );
  if (!file) throw new AtelierError('image_invalid', `The input image ${key} is not in the object store`);
  return decodeImage(file, input.width, input.height);
}

/** Turns the engine's progress of one image into that of the job; `finished` grows as images are stored. */
function progressOf(
  count: number,
  finished: readonly StoredImage[],
  report: (progress: Progress, urgent: boolean) => void,
): EngineProgressListener {
  let lastPhase = '';
  let firstStep: { at: number; done: number } | null = null;
  return ({ phase, step, steps }) => {
    // An image that starts from a picture runs fewer steps than were asked for, and says so with its first step.
    const total = steps * count;
    const done = finished.length * steps + step;
    const now = performance.now();
    const measured =
      firstStep && done > firstStep.done ? (now - firstStep.at) / (done - firstStep.done) : null;
    if (phase === 'denoise') firstStep ??= { at: now, done };
    report(
      {
        step: done,
        steps: total,
        fraction: total > 0 ? done / total : 0,
        eta_s: measured === null ? null : Math.round((total - done) * measured) / 1_000,
      },
      phase !== lastPhase,
    );
    lastPhase = phase;
  };
}
