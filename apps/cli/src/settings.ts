import { join } from 'node:path';
import { type Config, loadConfig } from '@atelier/shared';
import { CliError } from './errors.ts';

/** The project's folder: services run in it, and relative paths of the configuration start there. */
export const PROJECT = join(import.meta.dirname, '..', '..', '..');

/**
 * The configuration from the environment, some variables replaced.
 * @throws CliError `invalid_environment` that names each wrong variable
 */
export function settings(replaced: NodeJS.ProcessEnv = {}): Config {
  try {
    return loadConfig({ ...process.env, ...replaced }, PROJECT);
  } catch (cause) {
    throw new CliError('invalid_environment', cause instanceof Error ? cause.message : String(cause), {
      cause,
    });
  }
}
