import { readFile, realpath, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { AtelierError } from '../errors.ts';
import { dataDirOf } from './probe.ts';

/**
 * The port of a data folder, kept in its file `port`. It is the folder's lock as well: a server binds its port
 * before it opens its data, so of two servers for one folder the second fails to bind and touches nothing.
 */
export async function reservePort(dir: string, port: number | 'auto'): Promise<number> {
  const file = join(dir, 'port');
  if (port !== 'auto') {
    await writeFile(file, String(port));
    return port;
  }
  const kept = await readPort(file);
  if (kept !== null) return kept;
  const chosen = await freePort();
  try {
    await writeFile(file, String(chosen), { flag: 'wx' });
    return chosen;
  } catch (error) {
    // Another process chose at the same moment: its port is the folder's.
    const theirs = await readPort(file);
    if (theirs === null) throw error;
    return theirs;
  }
}

/**
 * Called when the folder's port cannot be bound: finds out by whom it is used, and chooses another one when it is
 * certain that no server uses this folder.
 * @throws AtelierError `conflict` when a server already uses the folder, or when that cannot be excluded
 */
export async function replacePort(dir: string, taken: number): Promise<number> {
  const holder = await dataDirOf(taken);
  if (holder === 'unknown') {
    throw new AtelierError(
      'conflict',
      `Port ${taken} belongs to the Redis of ${dir}, and what listens there does not answer. ` +
        `Stop that process, or, when it is no Redis of this folder, delete ${join(dir, 'port')}.`,
    );
  }
  if (holder?.dir === (await realpath(dir))) {
    throw new AtelierError(
      'conflict',
      `A Redis of this data folder already runs on port ${taken} (${dir}): is atelier already started? ` +
        'Stop it first, or choose another data folder by ATELIER_DATA_DIR.',
    );
  }
  const chosen = await freePort();
  await writeFile(join(dir, 'port'), String(chosen));
  return chosen;
}

async function readPort(file: string): Promise<number | null> {
  const text = await readFile(file, 'utf8').catch(() => '');
  const port = Number(text);
  return Number.isInteger(port) && port > 0 && port < 65536 ? port : null;
}

async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0));
    });
  });
}
