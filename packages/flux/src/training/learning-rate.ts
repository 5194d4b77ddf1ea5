/** Shapes of the learning rate after its warm-up. */
export const LR_SCHEDULES = ['constant', 'cosine', 'linear'] as const;
export type LrSchedule = (typeof LR_SCHEDULES)[number];

/**
 * Factor on the learning rate of optimizer step `step` (0 is the first): linear warm-up from 0, then constant, or
 * down to 0 at the end (`get_scheduler` of diffusers).
 */
export function learningRateFactor(
  schedule: LrSchedule,
  step: number,
  warmup: number,
  steps: number,
): number {
  if (step < warmup) return step / Math.max(warmup, 1);
  if (schedule === 'constant') return 1;
  const progress = (step - warmup) / Math.max(steps - warmup, 1);
  const left = Math.max(1 - progress, 0);
  return schedule === 'linear' ? left : Math.max(0.5 * (1 + Math.cos(Math.PI * Math.min(progress, 1))), 0);
}
