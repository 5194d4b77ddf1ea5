import { inspect } from 'node:util';
import { FluxError } from '../errors.ts';

type Details = Record<string, unknown>;

/** The file is malformed, lying or cut short. */
export function invalid(file: string, problem: string, details: Details = {}, cause?: unknown): FluxError {
  return new FluxError('checkpoint_invalid', `${file}: ${problem}`, { cause, details: { file, ...details } });
}

/** The file is well formed, but holds what this engine does not run. */
export function unsupported(file: string, problem: string, details: Details = {}): FluxError {
  return new FluxError('checkpoint_unsupported', `${file}: ${problem}`, { details: { file, ...details } });
}

/** A file, or a tensor of it, is not there. */
export function missing(file: string, problem: string, details: Details = {}, cause?: unknown): FluxError {
  return new FluxError('checkpoint_missing', `${file}: ${problem}`, { cause, details: { file, ...details } });
}

/** The first few of `items` for a message: "a, b, c and 12 more". */
export function firstFew(items: readonly string[], limit = 5): string {
  const list = items.slice(0, limit).join(', ');
  return items.length > limit ? `${list} and ${items.length - limit} more` : list;
}

/** A value of a file for a message. Bounded in every direction, since a hostile file chooses the value. */
export function shown(value: unknown): string {
  const text = inspect(value, { depth: 1, maxArrayLength: 8, maxStringLength: 80, breakLength: Infinity });
  return text.length > 160 ? `${text.slice(0, 157)}...` : text;
}
