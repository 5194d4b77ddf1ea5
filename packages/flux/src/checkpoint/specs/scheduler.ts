import { join, resolve } from 'node:path';
import { readConfigFile } from '../config.ts';
import { statPath } from '../files.ts';
import { invalid, missing, shown, unsupported } from '../problems.ts';

/** The parameters of a FlowMatchEulerDiscreteScheduler. */
export interface SchedulerSpec {
  /** Shift of the sigmas when it does not depend on the resolution. */
  readonly shift: number;
  /** Whether the shift is e^mu with mu linear in the number of image tokens. */
  readonly useDynamicShifting: boolean;
  /** mu at baseImageSeqLen and at maxImageSeqLen. */
  readonly baseShift: number;
  readonly maxShift: number;
  readonly baseImageSeqLen: number;
  readonly maxImageSeqLen: number;
}

/** Options of the scheduler that would change its sigmas, with the only value that is supported. */
const UNSUPPORTED_SWITCHES = Object.freeze([
  'use_karras_sigmas',
  'use_exponential_sigmas',
  'use_beta_sigmas',
  'invert_sigmas',
  'stochastic_sampling',
]);
/** The transformer multiplies its time by this. */
const TRAIN_TIMESTEPS = 1000;

/**
 * Reads a scheduler's config; absent keys have the defaults of diffusers.
 *
 * @param path scheduler_config.json or the folder that holds it
 */
export async function readScheduler(path: string): Promise<SchedulerSpec> {
  const location = resolve(path);
  const file = (await statPath(location)).isDirectory() ? join(location, 'scheduler_config.json') : location;
  const config = await readConfigFile(file, { describes: ['FlowMatchEulerDiscreteScheduler'] });
  if (!config.exists) throw missing(file, 'there is no such file or folder');
  const refuse = (key: string, found: unknown, expected: string) =>
    unsupported(file, `${key} is ${shown(found)}; supported: ${expected}`, { key, found });
  for (const key of UNSUPPORTED_SWITCHES) if (config.boolean(key, false)) throw refuse(key, true, 'false');
  if (config.has('shift_terminal')) throw refuse('shift_terminal', config.number('shift_terminal'), 'null');
  config.choice('time_shift_type', ['exponential'], 'exponential');
  const timesteps = config.integer('num_train_timesteps', TRAIN_TIMESTEPS);
  if (timesteps !== TRAIN_TIMESTEPS) throw refuse('num_train_timesteps', timesteps, String(TRAIN_TIMESTEPS));
  const spec: SchedulerSpec = Object.freeze({
    shift: config.number('shift', 1),
    useDynamicShifting: config.boolean('use_dynamic_shifting', false),
    baseShift: config.number('base_shift', 0.5),
    maxShift: config.number('max_shift', 1.15),
    baseImageSeqLen: config.integer('base_image_seq_len', 256),
    maxImageSeqLen: config.integer('max_image_seq_len', 4096),
  });
  if (spec.maxImageSeqLen <= spec.baseImageSeqLen) {
    const { baseImageSeqLen, maxImageSeqLen } = spec;
    throw invalid(
      file,
      `max_image_seq_len ${maxImageSeqLen} is not above base_image_seq_len ${baseImageSeqLen}`,
    );
  }
  return spec;
}
