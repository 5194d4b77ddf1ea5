import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { openModel, type ModelFiles, type OpenedModel } from '../checkpoint/model-files.ts';
import { FluxError } from '../errors.ts';
import type { LoadOptions } from '../model.ts';
import { placeModel } from '../runtime/placement.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { PATCH } from '../sampling/latents.ts';
import { TextEncoder } from '../text/encoder.ts';
import { Vae } from '../vae/vae.ts';
import { LORA_FILE, loadCheckpoint, saveCheckpoint } from './checkpoint.ts';
import { modelEncoders } from './data/encoders.ts';
import { prepareItems, type PreparedDataset } from './data/items.ts';
import type { DatasetProblem } from './data/problems.ts';
import { LoraGradients } from './gradients.ts';
import type { TrainingOptions } from './options.ts';
import { initialModules } from './parameters.ts';
import { targetModules } from './targets.ts';
import { type StepReport, Trainer } from './trainer.ts';

export interface TrainRequest {
  model: LoadOptions;
  /** Folder with images/ and prompts/. */
  dataset: string;
  /** Gets a folder per checkpoint. */
  outputDir: string;
  options: TrainingOptions;
  /** Side of the square whose area pictures are trained at, in pixels. */
  resolution: number;
  squareCrop?: boolean;
  triggerWord?: string;
  skipBad?: boolean;
  /** Every k-th picture is held back, and its loss followed. */
  validationEvery?: number;
  saveEveryEpochs: number;
  /** Folder of a checkpoint to go on from. */
  resumeFrom?: string;
}

export type TrainEvent =
  | { type: 'preparing'; phase: 'check' | 'images' | 'captions'; done: number; total: number }
  | { type: 'ready'; pictures: number; validation: number; steps: number; skipped: DatasetProblem[] }
  | {
      type: 'step';
      step: number;
      steps: number;
      epoch: number;
      loss: number;
      learningRate: number;
      gradientNorm: number;
      ms: number;
    }
  /** Loss of the held-back pictures at fixed noise; epoch 0 is before the first step. */
  | { type: 'validation'; epoch: number; loss: number }
  | { type: 'checkpoint'; epoch: number; step: number; folder: string };

export interface TrainResult {
  /** The last checkpoint, and the LoRA in it. */
  folder: string;
  loraFile: string;
  steps: number;
  /** Of the last step. */
  loss: number;
  validationLoss: number | null;
}

/**
 * Trains a LoRA on a folder of pictures and captions: checks and encodes the dataset, then runs the recipe. When
 * `signal` aborts, a checkpoint is written at the next step's end and the training rejects with `canceled`, whose
 * details name the checkpoint.
 * @throws FluxError dataset_invalid, canceled, request_invalid, and what loading the model throws
 */
export async function train(
  request: TrainRequest,
  onEvent: (event: TrainEvent) => void,
  signal?: AbortSignal,
): Promise<TrainResult> {
  const { model, options } = request;
  const opened = await openModel(model.files);
  const placed = await placeModel(opened, { cacheDir: model.cacheDir, placement: 'expand' });
  const session: SessionOptions = model.threads ? { threads: model.threads } : {};
  const data = await encode(request, opened, placed, session, onEvent, signal);

  const spec = { transformer: opened.transformer.spec, clip: opened.clip.spec };
  const targets = targetModules(spec, options.targets);
  const from = request.resumeFrom
    ? await loadCheckpoint(request.resumeFrom, options, targets)
    : { modules: initialModules(targets, options.loraRank, options.loraAlpha, options.seed) };
  const { modules } = from;
  const gradients = await LoraGradients.load(opened.transformer.spec, placed.transformer, modules, session);
  const parts = { ...data, gradients, modules, scheduler: opened.scheduler, vae: opened.vae.spec };
  const trainer = new Trainer(parts, options, 'position' in from ? from.position : undefined);
  onEvent({
    type: 'ready',
    pictures: data.items.length,
    validation: data.validation.length,
    steps: trainer.steps,
    skipped: data.skipped,
  });

  const validate = async (): Promise<number | null> => {
    if (data.validation.length === 0) return null;
    const loss = await trainer.validate(data.validation);
    onEvent({ type: 'validation', epoch: trainer.position.epoch, loss });
    return loss;
  };
  const save = async (): Promise<string> => {
    const { epoch, step } = trainer.position;
    const folder = join(request.outputDir, `step-${String(step).padStart(6, '0')}`);
    await saveCheckpoint(folder, { position: trainer.position, options }, modules);
    onEvent({ type: 'checkpoint', epoch, step, folder });
    return folder;
  };
  try {
    let validationLoss = await validate();
    let last: StepReport | null = null;
    let folder = request.resumeFrom ?? '';
    while (!trainer.isDone) {
      const started = performance.now();
      last = await trainer.step();
      const { position, ...report } = last;
      const { step, epoch } = position;
      onEvent({ type: 'step', step, epoch, ...report, ms: performance.now() - started });
      // Lets the thread read its messages; a step may have blocked it for seconds.
      await new Promise(setImmediate);
      if (signal?.aborted) {
        const checkpoint = await save();
        throw new FluxError('canceled', `canceled after ${step} of ${report.steps} steps`, {
          details: { checkpoint },
        });
      }
      const endsEpoch = position.stepInEpoch === 0;
      if (endsEpoch && (epoch % request.saveEveryEpochs === 0 || trainer.isDone)) {
        folder = await save();
        validationLoss = await validate();
      }
    }
    return {
      folder,
      loraFile: join(folder, LORA_FILE),
      steps: trainer.steps,
      loss: last?.loss ?? NaN,
      validationLoss,
    };
  } finally {
    await gradients.release();
  }
}

/** The dataset as latents and embeddings; the encoders are gone when it returns. */
async function encode(
  request: TrainRequest,
  opened: OpenedModel,
  placed: Awaited<ReturnType<typeof placeModel>>,
  session: SessionOptions,
  onEvent: (event: TrainEvent) => void,
  signal?: AbortSignal,
): Promise<PreparedDataset> {
  const { model, resolution, squareCrop, triggerWord, skipBad, validationEvery } = request;
  const { files, maxSequenceLength } = model;
  const text = await TextEncoder.load(
    {
      clip: { spec: opened.clip.spec, locator: placed.clip, tokenizer: files.tokenizer },
      t5: { spec: opened.t5.spec, locator: placed.t5, tokenizer: files.tokenizer2 },
      maxSequenceLength,
    },
    session,
  );
  const vae = await Vae.load(opened.vae.spec, placed.vae, session);
  try {
    return await prepareItems(request.dataset, {
      resolution,
      multiple: opened.vae.spec.scaleFactor * PATCH,
      cacheDir: join(model.cacheDir, 'training'),
      modelKey: await modelKey(files, maxSequenceLength),
      encoders: modelEncoders(vae, text),
      onProgress: (progress) => onEvent({ type: 'preparing', ...progress }),
      ...(squareCrop === undefined ? {} : { squareCrop }),
      ...(triggerWord === undefined ? {} : { triggerWord }),
      ...(skipBad === undefined ? {} : { skipBad }),
      ...(validationEvery === undefined ? {} : { validationEvery }),
      ...(signal ? { signal } : {}),
    });
  } finally {
    await text.release();
    await vae.release();
  }
}

/** Tells apart what encodings depend on: the files of the encoders by path, size and time, and T5's length. */
async function modelKey(files: ModelFiles, maxSequenceLength: number): Promise<string> {
  const parts = [files.vae, files.textEncoder, files.textEncoder2, files.tokenizer, files.tokenizer2];
  const seen = await Promise.all(
    parts.map(async (path) => [path, (await stat(path)).size, (await stat(path)).mtimeMs]),
  );
  return createHash('sha256')
    .update(JSON.stringify([seen, maxSequenceLength, 'cpu']))
    .digest('hex');
}
