/** State of dynamic loss scaling; part of a checkpoint. */
export interface LossScale {
  /** Factor on the loss whose gradients are computed. */
  scale: number;
  /** Steps without an overflow since the factor last changed. */
  goodSteps: number;
  /** Steps left out so far: the optimizer has not seen them. */
  skipped: number;
}

/** Where torch's GradScaler starts; gradients of fp16 computations then use the whole of its range. */
export const INITIAL_LOSS_SCALE: Readonly<LossScale> = Object.freeze({
  scale: 2 ** 16,
  goodSteps: 0,
  skipped: 0,
});

const GROWTH_INTERVAL = 2000;

/**
 * The state after a step, by the rules of `torch.amp.GradScaler`: an overflow halves the factor, 2000 good steps in
 * a row double it. Factors are powers of two, so that scaling and its undoing round nothing.
 */
export function nextLossScale(state: LossScale, overflowed: boolean): LossScale {
  if (overflowed) return { scale: state.scale / 2, goodSteps: 0, skipped: state.skipped + 1 };
  const goodSteps = state.goodSteps + 1;
  return goodSteps === GROWTH_INTERVAL
    ? { ...state, scale: state.scale * 2, goodSteps: 0 }
    : { ...state, goodSteps };
}
