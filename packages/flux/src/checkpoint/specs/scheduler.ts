/** The parameters of a FlowMatchEulerDiscreteScheduler. */
export interface SchedulerSpec {
  /** Shift of the sigmas when it does not depend on the resolution. */
  readonly shift: number;
  /** Whether the shift is e^mu with mu linear in the number of image tokens. */
  readonly useDynamicShifting: boolean;
  /** mu at baseImageSeqLen and at maxImageSeqLen. */
  readonly baseShift: number;
  readonly maxShift: number;
  readonly baseImageSeqLen: number;
  readonly maxImageSeqLen: number;
}
