import { Redis } from 'ioredis';

/** One short-lived connection that fails instead of retrying, and that does not wait for data to be loaded. */
async function withConnection<T>(
  url: string,
  timeoutMs: number,
  use: (redis: Redis) => Promise<T>,
): Promise<T> {
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: timeoutMs,
    commandTimeout: timeoutMs,
    retryStrategy: () => null,
    maxRetriesPerRequest: 0,
    enableReadyCheck: false,
  });
  // The reason of a refused connection arrives as an event; the promise says only that it was closed.
  let reason: Error | undefined;
  redis.on('error', (error: Error) => (reason = error));
  try {
    await redis.connect();
    return await use(redis);
  } catch (error) {
    throw reason ?? error;
  } finally {
    // ioredis waits two seconds for a connection to close, even for one that is closed already.
    if (redis.status !== 'end') redis.disconnect();
  }
}

/** @throws the driver's error when no Redis answers at `url` within the time, or it still loads its data */
export async function ping(url: string, timeoutMs = 3000): Promise<void> {
  await withConnection(url, timeoutMs, (redis) => redis.ping());
}

/**
 * The data folder of the server on a local port.
 * @returns `null` when nothing listens there, or something that is no Redis or does not tell;
 * `'unknown'` when something listens and stays silent, as a stopped or very busy server does
 */
export async function dataDirOf(port: number): Promise<{ dir: string } | null | 'unknown'> {
  try {
    return await withConnection(`redis://127.0.0.1:${port}`, 2000, async (redis) => {
      const [, dir] = await redis.config('GET', 'dir');
      return dir === undefined ? null : { dir };
    });
  } catch (error) {
    return /timed out|ETIMEDOUT/i.test(String(error)) ? 'unknown' : null;
  }
}
