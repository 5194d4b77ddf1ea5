import type { FieldError } from '@atelier/shared';

/** A problem that the user can act on: shown as one clear line, without a stack. */
export class CliError extends Error {
  override readonly name = 'CliError';
  /** The stable code of the API's error, or of this program's own. */
  readonly code: string;
  /** The violated rules of a request, where the API named them. */
  readonly errors: readonly FieldError[];

  constructor(
    code: string,
    message: string,
    options: { cause?: unknown; errors?: readonly FieldError[] } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errors = options.errors ?? [];
  }
}

/** Any error that names a code: this program's own, and those of the queue, the store and the engine. */
export function isCoded(error: unknown): error is Error & { code: string; errors?: readonly FieldError[] } {
  return error instanceof Error && 'code' in error && typeof error.code === 'string';
}
