import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Attempt } from '@atelier/shared';

/**
 * The folder of a job's running attempt, which does not exist yet. What an attempt before it has left here, since its
 * trainer was killed, is removed: a dataset and checkpoints may be gigabytes.
 */
export async function attemptFolder(cacheDir: string, { id, token }: Attempt): Promise<string> {
  const all = join(cacheDir, 'trainings');
  const names = await readdir(all).catch(() => []);
  for (const name of names)
    if (name.startsWith(`${id}.`)) await rm(join(all, name), { recursive: true, force: true });
  return join(all, `${id}.${token}`);
}
