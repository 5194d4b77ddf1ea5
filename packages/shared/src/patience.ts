import { AtelierError } from './errors.ts';
import { setTimeout as sleep } from 'node:timers/promises';

const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 5_000;

/**
 * Repeats `work` while the object store is away: a finished picture is worth waiting for, and another attempt would
 * meet the same outage. Ends with the store's error when `signal` aborts.
 */
export async function whileStoreIsAway<T>(
  work: () => Promise<T>,
  signal: AbortSignal,
  onWait: (error: AtelierError) => void,
): Promise<T> {
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof AtelierError) || error.code !== 'store_unavailable' || signal.aborted)
        throw error;
      onWait(error);
      await sleep(pause, undefined, { signal }).catch(() => {});
      if (signal.aborted) throw error;
    }
  }
}
