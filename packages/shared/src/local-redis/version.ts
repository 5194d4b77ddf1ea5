import { run } from './run.ts';

/** BullMQ's scripts need LMOVE and GETEX, which came with 6.2. */
export const OLDEST_VERSION = '6.2.0';

/**
 * Asks a server binary for its version, which also proves that it runs on this machine.
 * @throws when it does not run, is not Redis or Valkey, or is older than {@link OLDEST_VERSION}
 */
export async function serverVersion(binary: string): Promise<string> {
  const output = await run(binary, ['--version'], { timeoutMs: 10_000 });
  const version = /\bv=(\d+\.\d+\.\d+)/.exec(output)?.[1];
  if (version === undefined) throw new Error(`${binary} is not a Redis or Valkey server`);
  if (isOlder(version, OLDEST_VERSION)) {
    throw new Error(`${binary} is version ${version}, ${OLDEST_VERSION} or newer is needed`);
  }
  return version;
}

export function isOlder(version: string, than: string): boolean {
  return version.localeCompare(than, 'en', { numeric: true }) < 0;
}
