/** The longest wait that a request can ask for, in seconds. */
export const MAX_WAIT_S = 60;

/**
 * Seconds of `wait` in a Prefer header (RFC 7240), at most {@link MAX_WAIT_S}; 0 when there is none. A preference
 * that cannot be understood is ignored, as the RFC asks.
 *
 * @example preferredWait('respond-async, wait=10') // 10
 */
export function preferredWait(header: string | undefined): number {
  for (const preference of (header ?? '').split(',')) {
    const match = /^\s*wait\s*=\s*"?(\d{1,9})"?\s*(;|$)/i.exec(preference);
    // Of a preference given twice, the first counts.
    if (match) return Math.min(Number(match[1]), MAX_WAIT_S);
  }
  return 0;
}
