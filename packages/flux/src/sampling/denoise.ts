import type { Variant } from '../lora/variants.ts';

export interface DenoiseInput {
  /** Packed latents at noise level sigmas[first], [S, inChannels]. */
  latents: Float32Array;
  /** T5 hidden states [T, jointDim] and the CLIP pooled output [1, pooledDim]. */
  text: Float32Array;
  pooled: Float32Array;
  guidance: number;
  /** Noise levels of the whole schedule, the last one 0. */
  sigmas: Float32Array;
  /** First step to run; above 0 for image-to-image. */
  first: number;
  /** Image tokens per column and row; their product is S. */
  grid: { height: number; width: number };
}

export interface DenoiseStep {
  /** Finished steps, 1 to `steps`. */
  step: number;
  steps: number;
  /** Noise level of `latents`. */
  sigma: number;
  /** Packed latents after the step. */
  latents: Float32Array;
}

/** Integrates the flow from sigmas[first] to 0 with Euler steps, yielding after each, or after several at once. */
export async function* denoise(
  { transformer, adaptation }: Omit<Variant, 'text'>,
  input: DenoiseInput,
): AsyncGenerator<DenoiseStep> {
  const sigmas = input.sigmas.subarray(input.first);
  const steps = sigmas.length - 1;
  const { text, pooled, guidance, grid } = input;
  const conditioning = await transformer.condition({ text, pooled, guidance, sigmas, grid }, adaptation);
  let { latents } = input;
  for (let step = 0; step < steps;) {
    const end = Math.min(steps, step + transformer.stepsPerRun(conditioning));
    latents = await transformer.advance(latents, conditioning, step, end);
    step = end;
    yield { step, steps, sigma: sigmas[step]!, latents };
  }
}
