import type { SchedulerSpec, VaeSpec } from '../checkpoint/spec.ts';
import { FluxError } from '../errors.ts';
import { addNoise, packLatents, PATCH } from '../sampling/latents.ts';
import { adamwStep, clipGradients } from './adamw.ts';
import type { Condition, Gradients, TrainingSample } from './gradients.ts';
import { learningRateFactor } from './learning-rate.ts';
import { INITIAL_LOSS_SCALE, type LossScale, nextLossScale } from './loss-scale.ts';
import { minSnrWeight } from './loss-weight.ts';
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
  /** Mean over the pictures of the step, weighted when the options say so. */
  loss: number;
  learningRate: number;
  /** Norm of all gradients before clipping; not finite in a step that was skipped. */
  gradientNorm: number;
  /** The gradients overflowed under the loss scale: the parameters stay as they were. */
  skipped: boolean;
}

/** What a training goes on from beside its parameters. */
export interface TrainerState {
  position: TrainingPosition;
  /** With dynamic loss scaling only. */
  lossScale?: LossScale;
}

export interface TrainerParts {
  gradients: Gradients;
  modules: readonly TrainedModule[];
  items: readonly TrainingItem[];
  /** Embeddings of the empty caption, for caption dropout. */
  empty: Pick<TrainingItem, 'text' | 'pooled'>;
  scheduler: SchedulerSpec;
  vae: Pick<VaeSpec, 'scalingFactor' | 'shiftFactor'>;
}

/** Noise levels at which the validation loss is taken. */
const VALIDATION_SIGMAS = [0.1, 0.3, 0.5, 0.7, 0.9];

/** Pictures whose modulations are computed together; 4 MB each for FLUX.1. */
const PREPARED_TOGETHER = 64;

/**
 * LoRA training on the rectified-flow objective: the model's velocity at (1 - σ) latents + σ noise should be
 * noise - latents. What a step does depends on the options, the data and its position alone, so a training that goes
 * on from a checkpoint ends with the same bits as one that never stopped.
 */
export class Trainer {
  readonly #parts: TrainerParts;
  readonly #options: TrainingOptions;
  #position: TrainingPosition;
  #lossScale: LossScale | undefined;
  /** Which group of steps has been announced to the gradients; see {@link Trainer.#prepare}. */
  #prepared: number | null = null;

  constructor(
    parts: TrainerParts,
    options: TrainingOptions,
    from: TrainerState = { position: { step: 0, epoch: 0, stepInEpoch: 0 } },
  ) {
    this.#parts = parts;
    this.#options = options;
    this.#position = from.position;
    if (options.lossScaling === 'dynamic') this.#lossScale = from.lossScale ?? INITIAL_LOSS_SCALE;
  }

  get state(): TrainerState {
    return { position: this.#position, ...(this.#lossScale && { lossScale: this.#lossScale }) };
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

  /**
   * One optimizer step.
   * @throws FluxError request_invalid when the gradients are not finite and no loss scale is the reason
   */
  async step(): Promise<StepReport> {
    const { items } = this.#parts;
    const { step, epoch, stepInEpoch } = this.#position;
    await this.#prepare(step);
    const loss = await this.#accumulate(this.#chosen(step));
    const { skipped, gradientNorm, learningRate } = this.#update(loss);
    const isLast = stepInEpoch + 1 === stepsPerEpoch(items.length, this.#options);
    this.#position = {
      step: step + 1,
      epoch: isLast ? epoch + 1 : epoch,
      stepInEpoch: isLast ? 0 : stepInEpoch + 1,
    };
    return { position: this.#position, steps: this.steps, loss, learningRate, gradientNorm, skipped };
  }

  /** The pictures of a step. */
  #chosen(step: number): TrainingItem[] {
    const { items } = this.#parts;
    const { batchSize, gradientAccumulationSteps, seed } = this.#options;
    const perEpoch = stepsPerEpoch(items.length, this.#options);
    const perStep = batchSize * gradientAccumulationSteps;
    const order = shuffled(items.length, stream(seed, 'order', Math.floor(step / perEpoch)));
    const first = (step % perEpoch) * perStep;
    return order.slice(first, first + perStep).map((index) => items[index]!);
  }

  /**
   * Announces what the pictures of the coming steps are conditioned on. Steps are grouped by their number and a group
   * is announced as a whole, also by a training that goes on from the middle of it: how many are computed together
   * may change the last bits of each.
   */
  async #prepare(step: number): Promise<void> {
    const { batchSize, gradientAccumulationSteps } = this.#options;
    const perGroup = Math.ceil(PREPARED_TOGETHER / (batchSize * gradientAccumulationSteps));
    const group = Math.floor(step / perGroup);
    if (group === this.#prepared) return;
    const end = Math.min((group + 1) * perGroup, this.steps);
    const conditions: Condition[] = [];
    for (let of = group * perGroup; of < end; of++)
      for (const [i, item] of this.#chosen(of).entries()) {
        const { sigma, caption } = this.#draw(item, of, i);
        conditions.push({ sigma, guidance: this.#options.guidance, pooled: caption.pooled });
      }
    await this.#parts.gradients.prepare(conditions);
    this.#prepared = group;
  }

  /** The gradients of the mean loss of `chosen`, times the loss scale. @returns that loss, without the scale */
  async #accumulate(chosen: readonly TrainingItem[]): Promise<number> {
    const { gradients, modules } = this.#parts;
    const { minSnrGamma } = this.#options;
    for (const { downGradient, upGradient } of modules) {
      downGradient.fill(0);
      upGradient.fill(0);
    }
    let loss = 0;
    for (const [i, item] of chosen.entries()) {
      const sample = this.#sample(item, this.#position.step, i);
      const factor = minSnrGamma === undefined ? 1 : minSnrWeight(sample.sigma, minSnrGamma);
      const weight = factor / chosen.length;
      loss += (await gradients.loss(sample, weight * (this.#lossScale?.scale ?? 1))) * weight;
    }
    return loss;
  }

  /** Clips the gradients and lets the optimizer use them, unless they overflowed. */
  #update(loss: number): Pick<StepReport, 'learningRate' | 'gradientNorm' | 'skipped'> {
    const { modules } = this.#parts;
    const { lrSchedule, lrWarmupSteps, maxGradNorm, adamw, ...options } = this.#options;
    const { step } = this.#position;
    const all = modules.flatMap(({ downGradient, upGradient }) => [downGradient, upGradient]);
    const before = this.#lossScale;
    if (before) for (const gradient of all) scaleBy(gradient, 1 / before.scale);
    const gradientNorm = clipGradients(all, maxGradNorm > 0 ? maxGradNorm : Infinity);
    const learningRate =
      options.learningRate * learningRateFactor(lrSchedule, step, lrWarmupSteps, this.steps);
    const skipped = !Number.isFinite(gradientNorm);
    if (before) this.#lossScale = nextLossScale(before, skipped);
    else if (skipped) throw diverged(step + 1, loss, options.learningRate);
    if (!skipped) {
      // Skipped steps do not count in the bias correction of the moments, which have not seen them.
      const updates = step + 1 - (before?.skipped ?? 0);
      for (const { down, up, downGradient, upGradient, moments } of modules) {
        adamwStep(down, downGradient, moments.down, updates, learningRate, adamw);
        adamwStep(up, upGradient, moments.up, updates, learningRate, adamw);
      }
    }
    return { learningRate, gradientNorm, skipped };
  }

  /** Mean loss of `items` at fixed noise levels with fixed noise: comparable between epochs and runs. */
  async validate(items: readonly TrainingItem[]): Promise<number> {
    const { gradients } = this.#parts;
    const { guidance } = this.#options;
    const perGroup = Math.ceil(PREPARED_TOGETHER / VALIDATION_SIGMAS.length);
    let sum = 0;
    this.#prepared = null;
    for (const [i, item] of items.entries()) {
      if (i % perGroup === 0) {
        const group = items.slice(i, i + perGroup);
        const conditions = group.flatMap(({ pooled }) =>
          VALIDATION_SIGMAS.map((sigma) => ({ sigma, guidance, pooled })),
        );
        await gradients.prepare(conditions);
      }
      for (const [j, sigma] of VALIDATION_SIGMAS.entries()) {
        const generator = stream(0, 'validation', i, j);
        sum += await gradients.loss(this.#noised(item, item, sigma, generator));
      }
    }
    return sum / (items.length * VALIDATION_SIGMAS.length);
  }

  #sample(item: TrainingItem, step: number, index: number): TrainingSample {
    const { sigma, caption, generator } = this.#draw(item, step, index);
    return this.#noised(item, caption, sigma, generator);
  }

  /** The first numbers of the stream of a picture in a step. */
  #draw(item: TrainingItem, step: number, index: number) {
    const { seed, captionDropout, timestepSampling } = this.#options;
    const generator = stream(seed, 'sample', step, index);
    const tokens = (item.latent.height / PATCH) * (item.latent.width / PATCH);
    const sigma = sampleSigma(generator, timestepSampling, this.#parts.scheduler, tokens);
    const caption = generator.uniform() < captionDropout ? this.#parts.empty : item;
    return { sigma, caption, generator };
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

function scaleBy(values: Float32Array, factor: number): void {
  for (let i = 0; i < values.length; i++) values[i]! *= factor;
}

/** Every attempt would end here again, so it is the request that has to change. */
function diverged(step: number, loss: number, learningRate: number): FluxError {
  return new FluxError(
    'request_invalid',
    `the training diverged: the gradients of step ${step} are not finite (loss ${loss}); ` +
      `a learning rate below ${learningRate} may help`,
    { details: { step, loss } },
  );
}
