import { Redis } from 'ioredis';
import type { Config } from './config.ts';
import { AtelierError } from './errors.ts';

/**
 * `api`: a request must get its 503 within seconds, so commands fail while Redis is away.
 * `worker`: the job in hand outlives an outage, so commands wait for as long as it takes.
 */
export type RedisPurpose = 'api' | 'worker';

const API_TIMEOUT_MS = 1_500;

/** A client that reconnects for ever and loads no command before it is needed. Connection errors are events. */
export function createRedis(config: Pick<Config, 'REDIS_URL'>, purpose: RedisPurpose): Redis {
  const redis = new Redis(config.REDIS_URL, {
    connectionName: `atelier-${purpose}`,
    connectTimeout: API_TIMEOUT_MS,
    retryStrategy: (attempt) => Math.min(50 * 2 ** Math.min(attempt, 5), 1_000),
    // After a failover the old primary answers READONLY on connections that are still open.
    reconnectOnError: (error) => error.message.startsWith('READONLY'),
    ...(purpose === 'api'
      ? { enableOfflineQueue: false, maxRetriesPerRequest: 0, commandTimeout: API_TIMEOUT_MS }
      : { maxRetriesPerRequest: null }),
  });
  // Without a listener ioredis writes each failed reconnect to the console; readiness reports the outage instead.
  redis.on('error', () => {});
  return redis;
}

/** A client of its own for SUBSCRIBE: it waits out an outage, and ioredis subscribes again after a reconnect. */
export function createSubscriber(redis: Redis): Redis {
  const subscriber = redis.duplicate({
    enableOfflineQueue: true,
    maxRetriesPerRequest: null,
    commandTimeout: undefined,
  });
  subscriber.on('error', () => {});
  return subscriber;
}

/** Replies that say that the server, not the command, is at fault. */
const SERVER_AWAY = /^(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|OOM|MISCONF|NOREPLICAS|TRYAGAIN|UNBLOCKED)/;

/** Ours, not Redis's: a wrong argument, or a command or script that the server refused. */
function isMistake(error: unknown): boolean {
  if (error instanceof TypeError || error instanceof RangeError || error instanceof SyntaxError) return true;
  return error instanceof Error && error.name === 'ReplyError' && !SERVER_AWAY.test(error.message);
}

/**
 * Runs commands, translating what the driver throws when Redis is away.
 * @throws AtelierError `queue_unavailable`, the driver's error as its cause
 */
export async function queueCall<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    if (error instanceof AtelierError || isMistake(error)) throw error;
    throw new AtelierError('queue_unavailable', `Redis does not answer: ${String(error)}`, { cause: error });
  }
}

/** Rejects with `queue_unavailable` unless Redis answers within `timeoutMs`. */
export async function pingRedis(redis: Redis, timeoutMs = 1_000): Promise<void> {
  // A client that queues commands while it is disconnected would pile up one ping for each probe.
  if (redis.status !== 'ready')
    throw new AtelierError('queue_unavailable', `Redis cannot be reached: the connection is ${redis.status}`);
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
  try {
    await queueCall(() => Promise.race([redis.ping(), late]));
  } finally {
    clearTimeout(timer);
  }
}
