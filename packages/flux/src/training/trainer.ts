import type { SchedulerSpec, VaeSpec } from '../checkpoint/spec.ts';
import { addNoise, packLatents, PATCH } from '../sampling/latents.ts';
import { adamwStep, clipGradients } from './adamw.ts';
import type { LoraGradients, TrainingSample } from './gradients.ts';
import { learningRateFactor } from './learning-rate.ts';
import { stepsPerEpoch, type TrainingOptions, type TrainingPosition } from './options.ts';
import type { TrainedModule } from './parameters.ts';
import { shuffled, stream } from './streams.ts';
import { sampleSigma } from './timesteps.ts';

/** One picture with its caption, as the encoders see them. */
export interface TrainingItem {
  /** Latent size; the means and logarithms of variances of the encoder are [channels, height, width]. */
  latent: { channels: number; height: number; width: number };
  mean: Float32Array;
  logVariance: Float32Array;
  text: Float32Array;
  pooled: Float32Array;
}

export interface StepReport {
  /** Position after the step. */
  position: TrainingPosition;
  steps: number;
  /** Mean over the pictures of the step. */
  loss: number;
  learningRate: number;
  /** Norm of all gradients before clipping. */
  gradientNorm: number;
}

export interface TrainerParts {
  gradients: LoraGradients;
  modules: readonly TrainedModule[];
  items: readonly TrainingItem[];
  /** Embeddings of the empty caption, for caption dropout. */
  empty: Pick<TrainingItem, 'text' | 'pooled'>;
  scheduler: SchedulerSpec;
  vae: Pick<VaeSpec, 'scalingFactor' | 'shiftFactor'>;
}

/** Noise levels at which the validation loss is taken. */
const VALIDATION_SIGMAS = [0.1, 0.3, 0.5, 0.7, 0.9];

/**
 * LoRA training on the rectified-flow objective: the model's velocity at (1 - σ) latents + σ noise should be
 * noise - latents. What a step does depends on the options, the data and its position alone, so a training that goes
 * on from a checkpoint ends with the same bits as one that never stopped.
 */
export class Trainer {
  readonly #parts: TrainerParts;
  readonly #options: TrainingOptions;
  #position: TrainingPosition;

  constructor(
    parts: TrainerParts,
    options: TrainingOptions,
    position: TrainingPosition = { step: 0, epoch: 0, stepInEpoch: 0 },
  ) {
    this.#parts = parts;
    this.#options = options;
    this.#position = position;
  }

  get position(): TrainingPosition {
    return this.#position;
  }

  get steps(): number {
    return stepsPerEpoch(this.#parts.items.length, this.#options) * this.#options.maxEpochs;
  }

  get isDone(): boolean {
    return this.#position.step >= this.steps;
  }

  /** One optimizer step. */
  async step(): Promise<StepReport> {
    const { gradients, modules, items } = this.#parts;
    const options = this.#options;
    const { step, epoch, stepInEpoch } = this.#position;
    const order = shuffled(items.length, stream(options.seed, 'order', epoch));
    const perStep = options.batchSize * options.gradientAccumulationSteps;
    const chosen = order.slice(stepInEpoch * perStep, (stepInEpoch + 1) * perStep);

    for (const { downGradient, upGradient } of modules) {
      downGradient.fill(0);
      upGradient.fill(0);
    }
    let loss = 0;
    for (const [i, index] of chosen.entries()) {
      const sample = this.#sample(items[index]!, step, i);
      loss += (await gradients.loss(sample, 1 / chosen.length)) / chosen.length;
    }
    const all = modules.flatMap(({ downGradient, upGradient }) => [downGradient, upGradient]);
    const gradientNorm = clipGradients(all, options.maxGradNorm > 0 ? options.maxGradNorm : Infinity);
    const factor = learningRateFactor(options.lrSchedule, step, options.lrWarmupSteps, this.steps);
    const learningRate = options.learningRate * factor;
    for (const { down, up, downGradient, upGradient, moments } of modules) {
      adamwStep(down, downGradient, moments.down, step + 1, learningRate, options.adamw);
      adamwStep(up, upGradient, moments.up, step + 1, learningRate, options.adamw);
    }
    const isLast = stepInEpoch + 1 === stepsPerEpoch(items.length, options);
    this.#position = {
      step: step + 1,
      epoch: isLast ? epoch + 1 : epoch,
      stepInEpoch: isLast ? 0 : stepInEpoch + 1,
    };
    return { position: this.#position, steps: this.steps, loss, learningRate, gradientNorm };
  }

  /** Mean loss of `items` at fixed noise levels with fixed noise: comparable between epochs and runs. */
  async validate(items: readonly TrainingItem[]): Promise<number> {
    let sum = 0;
    for (const [i, item] of items.entries()) {
      for (const [j, sigma] of VALIDATION_SIGMAS.entries()) {
        const generator = stream(0, 'validation', i, j);
        sum += await this.#parts.gradients.loss(this.#noised(item, item, sigma, generator));
      }
    }
    return sum / (items.length * VALIDATION_SIGMAS.length);
  }

  #sample(item: TrainingItem, step: number, index: number): TrainingSample {
    const { seed, captionDropout, timestepSampling } = this.#options;
    const generator = stream(seed, 'sample', step, index);
    const tokens = (item.latent.height / PATCH) * (item.latent.width / PATCH);
    const sigma = sampleSigma(generator, timestepSampling, this.#parts.scheduler, tokens);
    const caption = generator.uniform() < captionDropout ? this.#parts.empty : item;
    return this.#noised(item, caption, sigma, generator);
  }

  #noised(
    item: TrainingItem,
    caption: Pick<TrainingItem, 'text' | 'pooled'>,
    sigma: number,
    generator: { randn: (size: number) => Float32Array },
  ): TrainingSample {
    const { scalingFactor, shiftFactor } = this.#parts.vae;
    const count = item.mean.length;
    const drawn = generator.randn(count);
    const latents = item.mean.map(
      (mean, i) => (mean + Math.exp(0.5 * item.logVariance[i]!) * drawn[i]! - shiftFactor) * scalingFactor,
    );
    const noise = generator.randn(count);
    const target = noise.map((value, i) => value - latents[i]!);
    return {
      noisy: packLatents(addNoise(latents, noise, sigma), item.latent),
      target: packLatents(target, item.latent),
      sigma,
      guidance: this.#options.guidance,
      text: caption.text,
      pooled: caption.pooled,
      grid: { height: item.latent.height / PATCH, width: item.latent.width / PATCH },
    };
  }
}
