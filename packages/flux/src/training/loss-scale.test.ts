import { INITIAL_LOSS_SCALE, nextLossScale } from './loss-scale.ts';

test('2000 good steps in a row double the scale, an overflow halves it and starts the count anew', () => {
  let state = nextLossScale({ ...INITIAL_LOSS_SCALE, goodSteps: 1998 }, false);
  expect(state).toEqual({ scale: 2 ** 16, goodSteps: 1999, skipped: 0 });
  expect(nextLossScale(state, false)).toEqual({ scale: 2 ** 17, goodSteps: 0, skipped: 0 });
  state = nextLossScale(state, true);
  expect(state).toEqual({ scale: 2 ** 15, goodSteps: 0, skipped: 1 });
  expect(nextLossScale(state, false)).toEqual({ scale: 2 ** 15, goodSteps: 1, skipped: 1 });
});
