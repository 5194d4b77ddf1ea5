import type { Answer } from './send.ts';
import { AddressRefused } from './address.ts';

/** A receiver that asks for more patience than that is not waited for. */
const MAX_RETRY_AFTER_S = 24 * 3600;
/** Shares of the pause by which it is shorter or longer, so that what failed together does not return together. */
const JITTER = 0.2;

/** What an attempt means: for the delivery, for the endpoint, and in words for its log. */
export interface Outcome {
  result: 'delivered' | 'retry' | 'stop';
  /** Whether the endpoint works; null when nothing was learned of it. */
  healthy: boolean | null;
  status: number | null;
  /** null when it was delivered. */
  error: string | null;
  retryAfterS: number;
}

/** 2xx is delivered, 410 is final, all else is tried again: also a redirect, since its receiver is not asked for. */
export function outcomeOf({ status, location, retryAfterS }: Answer): Outcome {
  const after = Math.min(retryAfterS ?? 0, MAX_RETRY_AFTER_S);
  const base = { status, retryAfterS: after };
  if (status >= 200 && status < 300) return { ...base, result: 'delivered', healthy: true, error: null };
  if (status === 410)
    return { ...base, result: 'stop', healthy: true, error: '410: the receiver wants no more of it' };
  const redirect = `a redirect${location ? ` to ${location.slice(0, 200)}` : ''}, which is not followed`;
  const found = status >= 300 && status < 400 ? `found ${status}, ${redirect}` : `found ${status}`;
  return { ...base, result: 'retry', healthy: false, error: `${found}; allowed is 2xx` };
}

/** The outcome of a send that got no answer. */
export function outcomeOfError(error: unknown): Outcome {
  const text = error instanceof Error ? error.message : String(error);
  const message = text.replaceAll(/\s+/g, ' ').trim().slice(0, 300) || 'unknown error';
  const refused = error instanceof AddressRefused;
  return {
    result: refused ? 'stop' : 'retry',
    healthy: refused ? null : false,
    status: null,
    error: message,
    retryAfterS: 0,
  };
}

/**
 * The pause before the next attempt.
 *
 * @param failures those so far, this one included
 * @returns ms; null when there were enough
 */
export function pauseMs(
  retryS: readonly number[],
  failures: number,
  retryAfterS: number,
  random = Math.random(),
): number | null {
  const pause = retryS[failures - 1];
  if (pause === undefined) return null;
  const jittered = pause * (1 - JITTER + 2 * JITTER * random);
  return Math.round(Math.max(jittered, retryAfterS) * 1_000);
}
