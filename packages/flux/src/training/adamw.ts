/** Hyperparameters of AdamW; the defaults are torch's. */
export interface AdamWOptions {
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
}

export const ADAMW_DEFAULTS: Readonly<AdamWOptions> = Object.freeze({
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.01,
});

/** First and second moments of one parameter. */
export interface Moments {
  first: Float32Array;
  second: Float32Array;
}

/**
 * One AdamW step in place: decoupled weight decay, then the bias-corrected Adam update (Loshchilov and Hutter, 2019;
 * `torch.optim.AdamW`). Moments and parameters are fp32, the arithmetic between them float64.
 *
 * @param step 1 for the first step
 */
export function adamwStep(
  parameter: Float32Array,
  gradient: Float32Array,
  moments: Moments,
  step: number,
  learningRate: number,
  options: AdamWOptions,
): void {
  const { beta1, beta2, epsilon, weightDecay } = options;
  const stepSize = learningRate / (1 - beta1 ** step);
  const rootOfCorrection = Math.sqrt(1 - beta2 ** step);
  const keep = 1 - learningRate * weightDecay;
  const { first, second } = moments;
  for (let i = 0; i < parameter.length; i++) {
    const slope = gradient[i]!;
    const m = (first[i] = beta1 * first[i]! + (1 - beta1) * slope);
    const v = (second[i] = beta2 * second[i]! + (1 - beta2) * slope * slope);
    parameter[i] = parameter[i]! * keep - (stepSize * m) / (Math.sqrt(v) / rootOfCorrection + epsilon);
  }
}

/**
 * Scales gradients in place so that their common norm is at most `maxNorm` (`clip_grad_norm_` of torch).
 * @returns the norm before
 */
export function clipGradients(gradients: readonly Float32Array[], maxNorm: number): number {
  let squares = 0;
  for (const gradient of gradients) for (let i = 0; i < gradient.length; i++) squares += gradient[i]! ** 2;
  const norm = Math.sqrt(squares);
  const factor = maxNorm / (norm + 1e-6);
  if (factor < 1)
    for (const gradient of gradients) for (let i = 0; i < gradient.length; i++) gradient[i]! *= factor;
  return norm;
}
