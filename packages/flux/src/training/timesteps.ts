import type { SchedulerSpec } from '../checkpoint/spec.ts';
import type { TorchGenerator } from '../sampling/random.ts';
import { shiftMu } from '../sampling/schedule.ts';

/**
 * How noise levels are drawn. 'shift': sigmoid of a normal, shifted towards noise with the resolution as sampling
 * shifts its schedule; 'sigmoid': the same without the shift (logit-normal, Esser et al. 2024); 'uniform'.
 */
export const TIMESTEP_SAMPLING = ['shift', 'sigmoid', 'uniform'] as const;
export type TimestepSampling = (typeof TIMESTEP_SAMPLING)[number];

/** A noise level in (0, 1). */
export function sampleSigma(
  generator: TorchGenerator,
  sampling: TimestepSampling,
  scheduler: SchedulerSpec,
  imageTokens: number,
): number {
  if (sampling === 'uniform') return generator.uniform();
  const sigma = 1 / (1 + Math.exp(-generator.randn(1)[0]!));
  if (sampling === 'sigmoid') return sigma;
  const shift = scheduler.useDynamicShifting ? Math.exp(shiftMu(scheduler, imageTokens)) : scheduler.shift;
  return (shift * sigma) / (1 + (shift - 1) * sigma);
}
