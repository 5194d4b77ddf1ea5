import { AtelierError, ERRORS, type ErrorCode, type Problem } from '@atelier/shared';
import type { ErrorRequestHandler, Request, Response } from 'express';
import { describeJsonError } from './json-body.ts';

/** What a client should wait before it tries again after a 503, in seconds. */
const RETRY_AFTER_S = 5;

/** What a client is told instead of the driver's words, which name hosts and paths; those are in the log. */
const OUTAGES: Partial<Record<ErrorCode, string>> = Object.freeze({
  queue_unavailable: `Redis does not answer; nothing was queued or changed. Try again in ${RETRY_AFTER_S} s.`,
  store_unavailable: `The object store does not answer; nothing was queued. Try again in ${RETRY_AFTER_S} s.`,
  internal_error: 'The request could not be handled; the log has the reason under the request id.',
});

/** Errors that body-parser marks with `type`, by that type. */
const BODY_ERRORS: Readonly<Record<string, (error: BodyError) => AtelierError>> = Object.freeze({
  'entity.parse.failed': (error) =>
    new AtelierError('invalid_json', `body: ${describeJsonError(error.body ?? '', error.message)}`),
  'entity.too.large': (error) =>
    new AtelierError('payload_too_large', `body: allowed are at most ${error.limit} bytes`, { cause: error }),
  'encoding.unsupported': (error) =>
    new AtelierError(
      'unsupported_media_type',
      `Content-Encoding: ${error.message}; allowed are gzip, deflate, br`,
      {
        cause: error,
      },
    ),
  'charset.unsupported': (error) =>
    new AtelierError('unsupported_media_type', `Content-Type: ${error.message}; allowed is UTF-8`, {
      cause: error,
    }),
});

interface BodyError extends Error {
  type: string;
  limit?: number;
  /** The text that could not be parsed. */
  body?: string;
}

/** Answers every error as RFC 9457 problem+json. Must be registered last. */
export const problemHandler: ErrorRequestHandler = (error: unknown, req, res, next) => {
  if (res.headersSent || res.destroyed) {
    // The status is out: ending the connection early is the only way left to say that the body is not whole.
    req.log.warn({ err: error }, 'failed after the response had begun');
    res.destroy();
    return;
  }
  const known = toAtelierError(error);
  // The request log writes it on its line.
  if (known.status >= 500) res.err = known;
  sendProblem(req, res, known);
  void next;
};

/** Answers with the problem of a coded error. */
export function sendProblem(req: Request, res: Response, error: AtelierError): void {
  const { status, title } = ERRORS[error.code];
  const problem: Problem = {
    type: problemType(error.code),
    title,
    status,
    detail: OUTAGES[error.code] ?? error.message,
    code: error.code,
    instance: req.originalUrl.split('?', 1)[0]!,
    request_id: requestId(req),
    ...(error.errors.length > 0 ? { errors: [...error.errors] } : {}),
  };
  if (status === 503) res.set('Retry-After', String(RETRY_AFTER_S));
  if (status === 401) res.set('WWW-Authenticate', 'Bearer');
  // Not send(): it would add a charset, which JSON has not, and an ETag, which invites caches.
  res.set({ 'Content-Type': 'application/problem+json', 'Cache-Control': 'no-store' });
  res.status(status).end(JSON.stringify(problem));
}

/** The id that requestLog made: always text, which the types of pino-http do not promise. */
function requestId({ id }: Request): string {
  return typeof id === 'string' ? id : '';
}

/** Where the page about a code is; a path, so that it is right behind any proxy. */
export function problemType(code: ErrorCode): string {
  return `/problems/${code}`;
}

function toAtelierError(error: unknown): AtelierError {
  if (error instanceof AtelierError) return error;
  if (isBodyError(error)) {
    const known = BODY_ERRORS[error.type];
    if (known) return known(error);
  }
  // Express answers a path with a broken percent escape so.
  if (error instanceof URIError) return new AtelierError('not_found', error.message, { cause: error });
  if (hasStatus(error) && error.status >= 400 && error.status < 500)
    return new AtelierError('validation_failed', error.message, { cause: error });
  return new AtelierError('internal_error', String(error), { cause: error });
}

function isBodyError(error: unknown): error is BodyError {
  return error instanceof Error && typeof (error as Partial<BodyError>).type === 'string';
}

function hasStatus(error: unknown): error is Error & { status: number } {
  return error instanceof Error && typeof (error as { status?: unknown }).status === 'number';
}
