import type { JobError } from './contracts/job.ts';
import { AtelierError, ERRORS, type ErrorCode } from './errors.ts';

/**
 * What the conditions of the engine are called in the API. This package does not know the engine; a code of the
 * engine that is missing here does not compile where {@link toJobError} is given it.
 */
export const ENGINE_ERRORS = Object.freeze({
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
  provider_unavailable: 'model_load_failed',
  device_too_small: 'model_load_failed',
  canceled: 'job_canceled',
} as const satisfies Record<string, ErrorCode>);

/**
 * Any error of an attempt as the record shows it; whether another attempt can help is in the table of errors.
 * @param engineCode the engine's own code when the error is one of the engine's
 */
export function toJobError(error: unknown, engineCode: keyof typeof ENGINE_ERRORS | null): JobError {
  const message = error instanceof Error ? error.message : String(error);
  if (engineCode) return coded(ENGINE_ERRORS[engineCode], message);
  return coded(error instanceof AtelierError ? error.code : 'internal_error', message);
}

function coded(code: ErrorCode, message: string): JobError {
  return { code, message, retryable: ERRORS[code].retryable };
}
