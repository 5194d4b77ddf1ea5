import type { Variant } from '../lora/variants.ts';
import { eulerStep } from './latents.ts';

export interface DenoiseInput {
  /** Packed latents at noise level sigmas[first], [S, inChannels]; consumed. */
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
  /** Packed latents after the step; the next step writes into the same array. */
  latents: Float32Array;
}

/** Integrates the flow from sigmas[first] to 0 with Euler steps, yielding after each. */
export async function* denoise(
  { transformer, deltas }: Omit<Variant, 'text'>,
  input: DenoiseInput,
): AsyncGenerator<DenoiseStep> {
  const { sigmas, first, latents } = input;
  const steps = sigmas.length - 1 - first;
  const conditioning = await transformer.condition(
    {
      text: input.text,
      pooled: input.pooled,
      guidance: input.guidance,
      sigmas: sigmas.subarray(first, sigmas.length - 1),
      grid: input.grid,
    },
    deltas,
  );
  for (let i = 0; i < steps; i++) {
    const velocity = await transformer.velocity(latents, conditioning, i);
    eulerStep(latents, velocity, sigmas[first + i]!, sigmas[first + i + 1]!);
    yield { step: i + 1, steps, sigma: sigmas[first + i + 1]!, latents };
  }
}
