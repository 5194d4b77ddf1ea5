import { AtelierError } from '@atelier/shared';
import express, { type RequestHandler } from 'express';

/** Larger bodies get V8's message without a position: finding it parses the text some 20 times. */
const LOCATED_CHARACTERS = 100_000;

/** Reads a JSON body of at most `limit` bytes into `req.body`. */
export function jsonBody(limit: number): RequestHandler[] {
  return [
    (req, _res, next) => {
      // A request without a body is for the validation of its fields; fetch sends it with this length.
      const isEmpty = req.is('application/json') === null || req.get('content-length') === '0';
      if (isEmpty || req.is('application/json')) return next();
      const type = req.get('content-type');
      const found = type === undefined ? 'nothing' : JSON.stringify(type.slice(0, 80));
      throw new AtelierError(
        'unsupported_media_type',
        `Content-Type: found ${found}, allowed is application/json`,
      );
    },
    // Not strict: a body that is a bare value is valid JSON, and the validation says what is wrong with it.
    express.json({ limit, strict: false }),
  ];
}

/** What is wrong with a text that JSON.parse refuses, and where. */
export function describeJsonError(text: string, message: string): string {
  // V8 gives the position of some errors; of those at the end and of unexpected tokens it does not.
  if (/ at position \d+/.test(message) || text.length > LOCATED_CHARACTERS) return message;
  const position = errorPosition(text);
  const before = text.slice(0, position).split('\n');
  return `${message} at position ${position} (line ${before.length} column ${before.at(-1)!.length + 1})`;
}

/** Length of the longest beginning of the text that could still become JSON. */
function errorPosition(text: string): number {
  let valid = 0;
  let invalid = text.length + 1;
  while (invalid - valid > 1) {
    const middle = (valid + invalid) >>> 1;
    if (couldContinue(text.slice(0, middle))) valid = middle;
    else invalid = middle;
  }
  return valid;
}

function couldContinue(beginning: string): boolean {
  try {
    JSON.parse(beginning);
    return true;
  } catch (error) {
    return !/^Unexpected (token|non-whitespace)/.test((error as Error).message);
  }
}
