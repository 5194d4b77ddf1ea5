import { join } from 'node:path';
import { openModel, type OpenedModel } from '../checkpoint/model-files.ts';
import { FluxError } from '../errors.ts';
import type { LoadOptions } from '../model.ts';
import { LORA_FILE, loadCheckpoint, saveCheckpoint } from './checkpoint.ts';
import type { DatasetProblem } from './data/problems.ts';
import { encode } from './encode.ts';
import type { TrainingOptions, TrainingPosition } from './options.ts';
import { initialModules } from './parameters.ts';
import type { Sample, SampleRequest } from './sampler.ts';
import { type TargetModule, targetModules } from './targets.ts';
import { type StepReport, Trainer } from './trainer.ts';
import { deviceWorkplace, hostWorkplace, type Workplace } from './workplace.ts';

export interface TrainRequest {
  /** With its `device` the training runs there. */
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
  /** Pictures of the resolution's square, drawn before the first step and at each of these checkpoints. */
  samples?: SampleRequest;
  /** Folder of a checkpoint to go on from. */
  resumeFrom?: string;
}

export type TrainEvent =
  /** Where the parts of the model are, in words; not on the processor. */
  | { type: 'placed'; plan: string }
  | { type: 'preparing'; phase: 'check' | 'images' | 'captions'; done: number; total: number }
  | {
      type: 'ready';
      pictures: number;
      validation: number;
      steps: number;
      /** What a checkpoint brought: finished optimizer steps and epochs. */
      step: number;
      epoch: number;
      skipped: DatasetProblem[];
    }
  | {
      type: 'step';
      step: number;
      steps: number;
      epoch: number;
      loss: number;
      learningRate: number;
      /** Not finite in a step that was skipped. */
      gradientNorm: number;
      /** The gradients overflowed under the loss scale, which was halved; the LoRA did not change. */
      skipped: boolean;
      ms: number;
    }
  /** Loss of the held-back pictures at fixed noise; epoch 0 is before the first step. */
  | { type: 'validation'; epoch: number; loss: number }
  /** Comes again for the checkpoint that a training goes on from, as whoever stopped may not have got to it. */
  | { type: 'checkpoint'; epoch: number; step: number; folder: string }
  /** A picture of the LoRA of the checkpoint at `step`; that of the base model at step 0. */
  | ({ type: 'sample'; epoch: number; step: number } & Sample);

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
 * details name the checkpoint. A checkpoint comes before its samples and validation: they can be made again from it.
 * @param place chooses where it runs; as the request says when absent
 * @throws FluxError dataset_invalid, canceled, request_invalid, device_too_small, and what loading the model throws
 */
export async function train(
  request: TrainRequest,
  onEvent: (event: TrainEvent) => void,
  signal?: AbortSignal,
  place: typeof workplaceOf = workplaceOf,
): Promise<TrainResult> {
  const opened = await openModel(request.model.files);
  const spec = { transformer: opened.transformer.spec, clip: opened.clip.spec };
  const targets = targetModules(spec, request.options.targets);
  const workplace = await place(request, opened, targets);
  const { options } = workplace;
  if (workplace.plan) onEvent({ type: 'placed', plan: workplace.plan });
  const data = await encode(request, opened, workplace, onEvent, signal);

  const from = request.resumeFrom
    ? await loadCheckpoint(request.resumeFrom, options, targets)
    : { modules: initialModules(targets, options.loraRank, options.loraAlpha, options.seed) };
  const { modules } = from;
  const gradients = await workplace.gradients(modules);
  const parts = { ...data, gradients, modules, scheduler: opened.scheduler, vae: opened.vae.spec };
  const trainer = new Trainer(parts, options, 'state' in from ? from.state : undefined);
  const sampler = workplace.sampler(data.prompts);
  onEvent({
    type: 'ready',
    pictures: data.items.length,
    validation: data.validation.length,
    steps: trainer.steps,
    step: trainer.position.step,
    epoch: trainer.position.epoch,
    skipped: data.skipped,
  });

  let folder = request.resumeFrom ?? null;
  let validationLoss: number | null = null;
  let last: StepReport | null = null;
  const save = async (): Promise<void> => {
    folder = join(request.outputDir, `step-${String(trainer.position.step).padStart(6, '0')}`);
    await saveCheckpoint(folder, { ...trainer.state, options }, modules);
  };
  const announce = (): void => {
    const { epoch, step } = trainer.position;
    if (folder) onEvent({ type: 'checkpoint', epoch, step, folder });
  };
  const canceled = (): FluxError => {
    const message = `canceled after ${trainer.position.step} of ${trainer.steps} steps`;
    return new FluxError('canceled', message, { details: folder ? { checkpoint: folder } : {} });
  };
  const isPlanned = ({ epoch, stepInEpoch }: TrainingPosition): boolean =>
    stepInEpoch === 0 && (epoch % request.saveEveryEpochs === 0 || trainer.isDone);
  /** What is shown of the LoRA at a planned checkpoint, or of the base model. */
  const show = async (): Promise<void> => {
    announce();
    const { epoch, step } = trainer.position;
    const { samples, resolution } = request;
    if (samples)
      for await (const sample of sampler.draw(samples, resolution, folder && join(folder, LORA_FILE))) {
        if (sample) onEvent({ type: 'sample', epoch, step, ...sample });
        await new Promise(setImmediate);
        if (signal?.aborted) throw canceled();
      }
    if (data.validation.length === 0) return;
    validationLoss = await trainer.validate(data.validation);
    onEvent({ type: 'validation', epoch, loss: validationLoss });
  };
  try {
    if (isPlanned(trainer.position)) await show();
    while (!trainer.isDone) {
      const started = performance.now();
      last = await trainer.step();
      const { position, ...report } = last;
      const { step, epoch } = position;
      onEvent({ type: 'step', step, epoch, ...report, ms: performance.now() - started });
      // Lets the thread read its messages; a step may have blocked it for seconds.
      await new Promise(setImmediate);
      if (signal?.aborted) {
        await save();
        announce();
        throw canceled();
      }
      if (!isPlanned(position)) continue;
      await save();
      await show();
    }
    return {
      folder: folder!,
      loraFile: join(folder!, LORA_FILE),
      steps: trainer.steps,
      loss: last?.loss ?? NaN,
      validationLoss,
    };
  } finally {
    await gradients.release();
  }
}

/** On a device when the request names one, else on the processor. */
async function workplaceOf(
  { model, options, resolution }: TrainRequest,
  opened: OpenedModel,
  targets: readonly TargetModule[],
): Promise<Workplace> {
  const { device } = model;
  if (!device || device.provider === 'cpu') return hostWorkplace(opened, model, options);
  const { loraRank: rank, loraAlpha } = options;
  const shapes = targets.map((target) => ({ ...target, rank, scale: loraAlpha / rank }));
  return deviceWorkplace(opened, { ...model, device }, options, shapes, resolution);
}
