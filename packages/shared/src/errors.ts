/**
 * Every error that leaves the system, in one table: stable code -> HTTP status, title, whether a retry can help.
 * A code is part of the API contract (RFC 9457 `code` member): add, never rename.
 */
export const ERRORS = {
  validation_failed: { status: 400, title: 'The request is not valid', retryable: false },
  invalid_json: { status: 400, title: 'The body is not valid JSON', retryable: false },
  unauthorized: { status: 401, title: 'A valid API key is required', retryable: false },
  forbidden: { status: 403, title: 'The API key lacks the scope', retryable: false },
  not_found: { status: 404, title: 'No such resource', retryable: false },
  method_not_allowed: { status: 405, title: 'The method is not allowed here', retryable: false },
  conflict: { status: 409, title: 'The state of the resource does not allow this', retryable: false },
  lora_in_use: { status: 409, title: 'A job that has not ended uses the LoRA', retryable: true },
  dataset_in_use: { status: 409, title: 'A training that has not ended uses the dataset', retryable: true },
  upload_expired: { status: 410, title: 'The time of the upload is over', retryable: false },
  payload_too_large: { status: 413, title: 'The body is too large', retryable: false },
  unsupported_media_type: { status: 415, title: 'The content type is not supported', retryable: false },
  range_not_satisfiable: { status: 416, title: 'The range is outside of the file', retryable: false },
  misdirected_request: { status: 421, title: 'This host name is not served here', retryable: false },
  unknown_model: { status: 422, title: 'The model is not in the catalog', retryable: false },
  image_invalid: { status: 422, title: 'The input image cannot be read', retryable: false },
  unknown_lora: { status: 422, title: 'There is no such LoRA', retryable: false },
  lora_invalid: { status: 422, title: 'The file is not a LoRA of this model', retryable: false },
  dataset_invalid: { status: 422, title: 'The dataset cannot be trained on', retryable: false },
  queue_unavailable: { status: 503, title: 'The queue cannot be reached', retryable: true },
  store_unavailable: { status: 503, title: 'The object store cannot be reached', retryable: true },
  model_load_failed: { status: 500, title: 'The model could not be loaded', retryable: false },
  engine_crashed: { status: 500, title: 'The engine process ended unexpectedly', retryable: true },
  engine_failed: { status: 500, title: 'The engine could not finish the job', retryable: true },
  gpu_out_of_memory: { status: 500, title: 'The device ran out of memory', retryable: true },
  job_canceled: { status: 409, title: 'The job was canceled', retryable: false },
  job_stalled: { status: 500, title: 'The job stalled too often', retryable: false },
  internal_error: { status: 500, title: 'Something unexpected went wrong', retryable: false },
} as const satisfies Record<string, { status: number; title: string; retryable: boolean }>;

export type ErrorCode = keyof typeof ERRORS;

/** One violated rule of a request: where, what was found, what is allowed. */
export interface FieldError {
  /** JSON path of the field, e.g. `styles[0].weight`; empty for the body itself. */
  field: string;
  message: string;
}

/** An error with a stable code. `message` says what was found and what is allowed; `cause` keeps the driver's error. */
export class AtelierError extends Error {
  override readonly name = 'AtelierError';
  readonly code: ErrorCode;
  readonly errors: readonly FieldError[];

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; errors?: readonly FieldError[] } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errors = options.errors ?? [];
  }

  get status(): number {
    return ERRORS[this.code].status;
  }

  get retryable(): boolean {
    return ERRORS[this.code].retryable;
  }
}
