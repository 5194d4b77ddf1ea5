import { ADAMW_DEFAULTS, type AdamWOptions } from './adamw.ts';
import type { LrSchedule } from './learning-rate.ts';
import type { TrainingTargets } from './targets.ts';
import type { TimestepSampling } from './timesteps.ts';

/** Everything that a training's result depends on beside the model and the data. */
export interface TrainingOptions {
  loraRank: number;
  loraAlpha: number;
  targets: TrainingTargets;
  learningRate: number;
  lrSchedule: LrSchedule;
  /** Optimizer steps of warm-up. */
  lrWarmupSteps: number;
  /** Pictures whose gradients are averaged in a micro-batch, and micro-batches in an optimizer step. */
  batchSize: number;
  gradientAccumulationSteps: number;
  maxEpochs: number;
  timestepSampling: TimestepSampling;
  /** Distilled guidance during training. */
  guidance: number;
  /** Share of pictures that are trained without their caption. */
  captionDropout: number;
  /** Gradients are scaled down to this norm; 0 leaves them. */
  maxGradNorm: number;
  adamw: AdamWOptions;
  /** γ of the Min-SNR weighting of the loss; noise levels weigh the same when absent. */
  minSnrGamma?: number;
  /** 'dynamic' for computations in fp16, whose gradients would vanish or overflow; 'none' when absent. */
  lossScaling?: 'none' | 'dynamic';
  seed: number;
}

/** The defaults of the reference recipe; learning rate, batch and epochs are those of a run on full-size FLUX.1. */
export const TRAINING_DEFAULTS: Readonly<TrainingOptions> = Object.freeze({
  loraRank: 4,
  loraAlpha: 8,
  targets: 'attention',
  learningRate: 1e-4,
  lrSchedule: 'constant',
  lrWarmupSteps: 0,
  batchSize: 4,
  gradientAccumulationSteps: 4,
  maxEpochs: 100,
  timestepSampling: 'shift',
  guidance: 1,
  captionDropout: 0,
  maxGradNorm: 1,
  adamw: ADAMW_DEFAULTS,
  seed: 42,
});

/** Where a training stands: what was finished. */
export interface TrainingPosition {
  /** Optimizer steps. */
  step: number;
  /** Whole epochs. */
  epoch: number;
  /** Optimizer steps of the current epoch. */
  stepInEpoch: number;
}

/** Optimizer steps of an epoch over `items` pictures; the last one may have fewer pictures. */
export function stepsPerEpoch(items: number, options: TrainingOptions): number {
  return Math.ceil(items / (options.batchSize * options.gradientAccumulationSteps));
}
