import type { SchedulerSpec } from '../checkpoint/spec.ts';

/**
 * Shift of the schedule, linear in the number of image tokens (`calculate_shift` of diffusers' FluxPipeline). At
 * 4096 tokens of FLUX.1-dev, e^mu = 3.1582.
 */
export function shiftMu(spec: SchedulerSpec, imageTokens: number): number {
  const slope = (spec.maxShift - spec.baseShift) / (spec.maxImageSeqLen - spec.baseImageSeqLen);
  const offset = spec.baseShift - slope * spec.baseImageSeqLen;
  return imageTokens * slope + offset;
}

/**
 * Noise levels of a run, from near 1 (noise) to 0 (image): `steps + 1` values, the last one 0. Every operation is
 * rounded to fp32 where diffusers' numpy does it, so the values are the same bits.
 */
export function sigmaSchedule(spec: SchedulerSpec, steps: number, imageTokens: number): Float32Array {
  const sigmas = new Float32Array(steps + 1);
  const last = 1 / steps;
  const stride = steps > 1 ? (last - 1) / (steps - 1) : 0;
  const shifted = spec.useDynamicShifting
    ? exponentialShift(Math.exp(shiftMu(spec, imageTokens)))
    : constantShift(spec.shift);
  for (let i = 0; i < steps; i++) {
    // numpy.linspace sets its last value instead of computing it.
    const linear = i === steps - 1 && steps > 1 ? last : 1 + i * stride;
    sigmas[i] = shifted(Math.fround(linear));
  }
  return sigmas;
}

/** sigma' = e^mu / (e^mu + 1 / sigma - 1), `time_shift` of the reference implementation. */
function exponentialShift(expMu: number): (sigma: number) => number {
  const m = Math.fround(expMu);
  return (sigma) => Math.fround(m / Math.fround(m + Math.fround(Math.fround(1 / sigma) - 1)));
}

/** sigma' = shift sigma / (1 + (shift - 1) sigma). */
function constantShift(shift: number): (sigma: number) => number {
  const s = Math.fround(shift);
  const less = Math.fround(shift - 1);
  return (sigma) => Math.fround(Math.fround(s * sigma) / Math.fround(1 + Math.fround(less * sigma)));
}

/**
 * First step of an image-to-image run (`get_timesteps` of diffusers' FluxImg2ImgPipeline): strength 1 starts at
 * step 0, from noise alone; smaller values skip steps. At least one step is left.
 */
export function startStep(steps: number, strength: number): number {
  const run = Math.min(steps * strength, steps);
  return Math.min(Math.trunc(Math.max(steps - run, 0)), steps - 1);
}
