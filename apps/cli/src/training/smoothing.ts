/** What a value of ten steps ago still counts is about a third: enough to see the trend of single batches. */
const SMOOTHING = 0.9;

/**
 * The last value of a series' exponential moving average, started without the pull towards 0 (the bias correction of
 * Adam, Kingma & Ba 2015, section 3).
 * @returns null for an empty series
 */
export function smoothed(values: readonly number[], smoothing = SMOOTHING): number | null {
  let average = 0;
  for (const value of values) average = smoothing * average + (1 - smoothing) * value;
  return values.length === 0 ? null : average / (1 - smoothing ** values.length);
}
