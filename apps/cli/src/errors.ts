/** A problem that the user can act on: shown as one clear line, without a stack. */
export class CliError extends Error {
  override readonly name = 'CliError';
  /** The stable code of the API's error, or of this program's own. */
  readonly code: string;
  readonly fields: readonly { field: string; message: string }[];

  constructor(
    code: string,
    message: string,
    options: { cause?: unknown; fields?: readonly { field: string; message: string }[] } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.fields = options.fields ?? [];
  }
}

/** Any error that names a code, such as those of the API, the queue and the engine. */
export function isCoded(error: unknown): error is Error & { code: string } {
  return error instanceof Error && 'code' in error && typeof error.code === 'string';
}
