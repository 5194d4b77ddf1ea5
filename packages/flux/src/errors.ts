/** The conditions under which the engine refuses or gives up. The code is stable; callers branch on it. */
export type FluxErrorCode =
  | 'checkpoint_invalid'
  | 'checkpoint_unsupported'
  | 'checkpoint_missing'
  | 'lora_invalid'
  | 'lora_unsupported'
  | 'dataset_invalid'
  | 'request_invalid'
  | 'engine_crashed'
  | 'engine_failed'
  | 'out_of_memory'
  | 'provider_unavailable'
  | 'device_too_small'
  | 'canceled';

/** An error of the engine. `message` says what was found and what is allowed; `details` is the same as data. */
export class FluxError extends Error {
  override readonly name = 'FluxError';
  readonly code: FluxErrorCode;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: FluxErrorCode,
    message: string,
    options: { cause?: unknown; details?: Record<string, unknown> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }
}
