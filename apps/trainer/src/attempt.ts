import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { TRAINING_DEFAULTS, type TrainingOptions } from '@atelier/flux';
import { readLora } from '@atelier/flux/lora';
import { ProgressReporter, TrainingInput, formatPin, whileStoreIsAway } from '@atelier/shared';
import type {
  Attempt,
  Catalog,
  Config,
  JobStore,
  Logger,
  LoraRegistry,
  ObjectStore,
  TrainingRecord,
} from '@atelier/shared';
import { Checkpoints } from './checkpoints.ts';
import { fetchDataset } from './dataset.ts';
import type { Engine, EngineTrainRequest, TrainEvent, TrainResult } from './engine.ts';
import { Measurements } from './measurements.ts';
import { type SampleEvent, saveSample } from './samples.ts';

/** Why a running attempt is told to stop. */
export type StopReason = 'cancel' | 'give_back' | 'superseded';

export interface AttemptDeps {
  config: Pick<
    Config,
    'ATELIER_CACHE_DIR' | 'ATELIER_ENGINE_MEMORY_BYTES' | 'ATELIER_ENGINE_PROVIDER' | 'ATELIER_ENGINE_THREADS'
  >;
  jobs: JobStore;
  store: ObjectStore;
  loras: LoraRegistry;
  catalog: Catalog;
  log: Logger;
}

type CheckpointEvent = TrainEvent & { type: 'checkpoint' };

/** What clients see of a running training is at most this old. */
const METRICS_EVERY_MS = 2_000;

const LORA_FILE = 'lora.safetensors';

/**
 * Trains one record from its latest checkpoint on. Each checkpoint becomes a version of the LoRA and what the next
 * attempt goes on from; that of an attempt which was stopped only the latter.
 * @param folder of this attempt alone; the caller removes it
 * @returns name@version of the result
 * @throws FluxError or AtelierError; when `stop` aborted, whatever was interrupted, after the checkpoint was stored
 */
export async function runAttempt(
  deps: AttemptDeps,
  record: TrainingRecord,
  attempt: Attempt,
  stop: AbortController,
  engine: Engine,
  folder: string,
): Promise<string> {
  const { jobs, store, log } = deps;
  const checkpoints = new Checkpoints(store, attempt);
  const measured = new Measurements(store, attempt);
  const patiently = <T>(work: () => Promise<T>): Promise<T> =>
    whileStoreIsAway(work, stop.signal, (err) => log.warn({ err }, 'waiting for the object store'));

  const progress = new ProgressReporter(async (value) => {
    const { result, record: current } = await jobs.progress(attempt, value);
    if (result !== 'done') stop.abort('superseded' satisfies StopReason);
    else if (current.cancel_requested_at) stop.abort('cancel' satisfies StopReason);
  });
  const published = new Map<string, string>();
  let saving = Promise.resolve();

  const publish = async (path: string): Promise<string> => {
    const lora = await patiently(() => addVersion(deps, record, path));
    log.info({ lora }, 'LoRA published');
    return lora;
  };
  const onCheckpoint = async ({ epoch, step, folder: saved }: CheckpointEvent): Promise<void> => {
    if (!stop.signal.aborted) {
      const lora = await publish(join(saved, LORA_FILE));
      published.set(saved, lora);
      measured.addVersion(epoch, step, lora);
    }
    await patiently(() => checkpoints.save(saved));
    await patiently(() => measured.save());
    log.info({ epoch, step }, 'checkpoint stored');
  };
  const onSample = async (event: SampleEvent): Promise<void> => {
    measured.addSample(await patiently(() => saveSample(store, attempt, event)));
    await patiently(() => measured.save());
  };
  const unlessSuperseded = async (work: () => Promise<void>): Promise<void> => {
    if ((await jobs.get(attempt))?.attempt === attempt.token) await work();
    else stop.abort('superseded' satisfies StopReason);
  };
  /** Writes one after the other; none once another attempt has taken over. */
  const write = (what: string, work: () => Promise<void>): void => {
    saving = saving.then(() => unlessSuperseded(work));
    // It is awaited when the engine is done; until then nobody listens.
    saving.catch((err: unknown) => log.error({ err }, `${what} could not be stored`));
  };
  const writeMeasured = (): void =>
    write('what was measured', async () => {
      if (measured.isUnsaved) await patiently(() => measured.save());
    });

  let firstStep: { at: number; step: number } | null = null;
  const onEvent = (event: TrainEvent): void => {
    measured.add(event);
    if (event.type === 'placed') log.info({ plan: event.plan }, 'training on a device');
    if (event.type === 'preparing') progress.report(record.progress);
    if (event.type === 'checkpoint') write('a checkpoint', () => onCheckpoint(event));
    if (event.type === 'sample') write('a sample', () => onSample(event));
    if (event.type !== 'step') return;
    const { step, steps } = event;
    const now = performance.now();
    firstStep ??= { at: now - event.ms, step: step - 1 };
    const stepMs = (now - firstStep.at) / (step - firstStep.step);
    progress.report({
      step,
      steps,
      fraction: step / steps,
      eta_s: Math.round((steps - step) * stepMs) / 1_000,
    });
  };

  try {
    const dataset = join(folder, 'dataset');
    const outputDir = join(folder, 'checkpoints');
    await patiently(() => fetchDataset(store, record.tenant, record.input.dataset, dataset, stop.signal));
    await patiently(() => measured.load());
    const resumeFrom = await patiently(() => checkpoints.restore(outputDir));
    if (resumeFrom) log.info('going on from a checkpoint');
    stop.signal.throwIfAborted();
    const request = trainRequest(deps, record.input, dataset, outputDir, resumeFrom);
    const timer = setInterval(() => measured.isUnsaved && writeMeasured(), METRICS_EVERY_MS);
    let result: TrainResult;
    try {
      result = await engine.train(request, { onEvent, signal: stop.signal });
    } finally {
      clearInterval(timer);
      writeMeasured();
      await saving;
    }
    stop.signal.throwIfAborted();
    const lora = published.get(result.folder) ?? (await publish(result.loraFile));
    await addTriggerWord(deps, record);
    return lora;
  } finally {
    progress.stop();
  }
}

function trainRequest(
  { catalog, config }: AttemptDeps,
  stored: TrainingInput,
  dataset: string,
  outputDir: string,
  resumeFrom: string | null,
): EngineTrainRequest {
  // A record from before a field was added gets its default.
  const input = TrainingInput.parse(stored);
  const model = catalog.get(input.model);
  const { steps, guidance } = model.defaults;
  const prompts = input.sample_prompts;
  const threads = config.ATELIER_ENGINE_THREADS;
  const memory = config.ATELIER_ENGINE_MEMORY_BYTES;
  return {
    model: {
      name: model.name,
      files: model.files,
      cacheDir: config.ATELIER_CACHE_DIR,
      maxSequenceLength: model.defaults.max_sequence_length,
      provider: config.ATELIER_ENGINE_PROVIDER,
      ...(model.quantize ? { placement: model.quantize } : {}),
      ...(threads === undefined ? {} : { threads }),
      ...(memory === undefined ? {} : { deviceBytes: memory }),
    },
    dataset,
    outputDir,
    options: trainingOptions(input),
    resolution: input.resolution,
    skipBad: input.skip_bad,
    saveEveryEpochs: input.save_every_n_epochs,
    ...(prompts.length === 0 ? {} : { samples: { prompts, seed: input.seed, steps, guidance } }),
    ...(input.trigger_word === undefined ? {} : { triggerWord: input.trigger_word }),
    ...(input.validation_every === undefined ? {} : { validationEvery: input.validation_every }),
    ...(resumeFrom === null ? {} : { resumeFrom }),
  };
}

function trainingOptions(input: TrainingInput): TrainingOptions {
  return {
    ...TRAINING_DEFAULTS,
    loraRank: input.lora_rank,
    loraAlpha: input.lora_alpha,
    targets: input.targets,
    learningRate: input.learning_rate,
    lrSchedule: input.lr_schedule,
    lrWarmupSteps: input.lr_warmup_steps,
    batchSize: input.batch_size,
    gradientAccumulationSteps: input.gradient_accumulation_steps,
    maxEpochs: input.max_epochs,
    timestepSampling: input.timestep_sampling,
    captionDropout: input.caption_dropout,
    ...(input.min_snr_gamma === undefined ? {} : { minSnrGamma: input.min_snr_gamma }),
    seed: input.seed,
  };
}

/** The bytes of the latest version once more, as after a crash between here and the checkpoint, add nothing. */
async function addVersion(
  { loras }: AttemptDeps,
  { tenant, id, input }: TrainingRecord,
  path: string,
): Promise<string> {
  const lora = await readLora(path, null);
  const ranks = [...lora.transformer.values()].map(({ rank }) => rank);
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  const { version } = await loras.add(tenant, input.name, {
    path,
    size: (await stat(path)).size,
    sha256: hash.digest('hex'),
    dialects: [...lora.dialects],
    rank: { min: Math.min(...ranks), max: Math.max(...ranks) },
    modules: { transformer: lora.transformer.size, text_encoder: lora.clip.size },
    base_model: input.model,
    warnings: [...lora.warnings],
    provenance: { source: 'training', filename: null, training_job: id },
  });
  return formatPin(input.name, version.version);
}

async function addTriggerWord(
  { loras, log }: AttemptDeps,
  { tenant, input: { name, trigger_word: word } }: TrainingRecord,
): Promise<void> {
  if (word === undefined) return;
  try {
    const known = (await loras.get(tenant, name))?.trigger_words ?? [];
    if (!known.includes(word)) await loras.update(tenant, name, { trigger_words: [...known, word] });
  } catch (err) {
    // The LoRA is what was asked for; the word is in the record too.
    log.warn({ err }, 'the trigger word could not be noted with the LoRA');
  }
}
