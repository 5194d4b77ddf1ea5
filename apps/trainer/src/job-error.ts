import { FluxError, type FluxErrorCode } from '@atelier/flux';
import { AtelierError, ERRORS, type ErrorCode, type JobError } from '@atelier/shared';

/** What the engine's conditions are called in the API. */
const CODES: Readonly<Record<FluxErrorCode, ErrorCode>> = Object.freeze({
  checkpoint_invalid: 'model_load_failed',
  checkpoint_unsupported: 'model_load_failed',
  checkpoint_missing: 'model_load_failed',
  lora_invalid: 'lora_invalid',
  lora_unsupported: 'lora_invalid',
  dataset_invalid: 'dataset_invalid',
  request_invalid: 'validation_failed',
  engine_crashed: 'engine_crashed',
  engine_failed: 'engine_failed',
  out_of_memory: 'gpu_out_of_memory',
  canceled: 'job_canceled',
});

/** Any error of an attempt as the record shows it; whether another attempt can help is in the table of errors. */
export function toJobError(error: unknown): JobError {
  if (error instanceof FluxError) return coded(CODES[error.code], error.message);
  if (error instanceof AtelierError) return coded(error.code, error.message);
  return coded('internal_error', error instanceof Error ? error.message : String(error));
}

function coded(code: ErrorCode, message: string): JobError {
  return { code, message, retryable: ERRORS[code].retryable };
}
