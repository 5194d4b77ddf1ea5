import { join } from 'node:path';
import { AtelierError } from '../errors.ts';
import { type FindOptions, findRedisServer } from './find.ts';
import { ping } from './probe.ts';
import { messageOf } from './run.ts';
import { type LocalRedis, type RedisLog, startLocalRedis } from './server.ts';

export interface ResolvedRedis {
  url: string;
  /** The server that was started, null when `REDIS_URL` names one. */
  server: LocalRedis | null;
  /** Ends what was started. */
  stop(): Promise<void>;
}

export interface ResolveOptions extends FindOptions {
  /** A started server keeps its data in the folder `redis` here. */
  dataDir: string;
  /** Default: the environment's `REDIS_URL`. */
  url?: string | undefined;
  log?: RedisLog;
}

/**
 * The Redis to use: the one at `REDIS_URL`, else one started here from what the machine has or can obtain.
 * @throws AtelierError `queue_unavailable`, `conflict`: see {@link startLocalRedis} and {@link findRedisServer}
 */
export async function resolveRedis(options: ResolveOptions): Promise<ResolvedRedis> {
  const url = options.url ?? process.env['REDIS_URL'];
  if (url) {
    await ping(url).catch((cause: unknown) => {
      throw new AtelierError(
        'queue_unavailable',
        `The Redis at REDIS_URL (${withoutPassword(url)}) does not answer: ${messageOf(cause)}. ` +
          'Start it, correct REDIS_URL, or unset REDIS_URL to let atelier start its own.',
        { cause },
      );
    });
    return { url, server: null, stop: async () => {} };
  }
  const { path, version, source } = await findRedisServer(options);
  options.log?.info({ path, version, source }, 'starting Redis');
  const server = await startLocalRedis({
    dir: join(options.dataDir, 'redis'),
    binary: path,
    ...(options.log ? { log: options.log } : {}),
  });
  return { url: server.url, server, stop: () => server.stop() };
}

function withoutPassword(url: string): string {
  return url.replace(/\/\/[^@/]*@/, '//***@');
}
