import http from 'node:http';
import https from 'node:https';
import {
  type Resolve,
  type WebhookAllowance,
  guardedLookup,
  hostOf,
  isLiteral,
  requireAddress,
} from './address.ts';

/** What a receiver has to answer within, from the lookup of its name to the head of its answer. */
export const SEND_TIMEOUT_MS = 10_000;

export interface SendOptions {
  allowance: WebhookAllowance;
  timeoutMs?: number;
  /** The system's resolver when absent. */
  resolve?: Resolve;
  signal?: AbortSignal;
}

export interface Answer {
  status: number;
  /** Seconds of a Retry-After header in seconds; null without one. */
  retryAfterS: number | null;
  /** Where a redirect leads; it is not followed. */
  location: string | null;
}

/**
 * POSTs a body and reads no more of the answer than its head: the body is thrown away with the connection.
 *
 * A redirect is an answer like any other. Following it would send a signed body where the owner of the job did not
 * ask for it, and to an address that somebody else chose.
 *
 * @throws AddressRefused before a byte is sent to an address that is not allowed
 * @throws Error of the lookup, the connection or TLS, or that of a timeout
 */
export async function send(
  target: string,
  body: string,
  headers: Readonly<Record<string, string>>,
  { allowance, timeoutMs = SEND_TIMEOUT_MS, resolve, signal }: SendOptions,
): Promise<Answer> {
  const url = new URL(target);
  const host = hostOf(url);
  // A socket looks no address up.
  if (isLiteral(host)) requireAddress(allowance, host, host);
  const timeout = AbortSignal.timeout(timeoutMs);
  const { promise, resolve: answered, reject } = Promise.withResolvers<Answer>();
  const request = (url.protocol === 'https:' ? https : http).request(url, {
    method: 'POST',
    headers: { ...headers, 'Content-Length': String(Buffer.byteLength(body)) },
    // A connection of its own: a kept one would have been checked for another delivery.
    agent: false,
    lookup: guardedLookup(allowance, resolve),
    maxHeaderSize: 16_384,
    signal: signal ? AbortSignal.any([timeout, signal]) : timeout,
  });
  // Not once: ending the connection early is an error to what is still being sent.
  request.on('error', (error) =>
    reject(timeout.aborted ? new Error(`no answer within ${timeoutMs} ms`, { cause: error }) : error),
  );
  request.once('response', (response) => {
    const { statusCode = 0, headers: answer } = response;
    answered({
      status: statusCode,
      retryAfterS: retryAfter(answer['retry-after']),
      location: answer.location ?? null,
    });
    response.destroy();
  });
  request.end(body);
  return promise;
}

function retryAfter(header: string | undefined): number | null {
  return header !== undefined && /^\d{1,7}$/.test(header) ? Number(header) : null;
}
