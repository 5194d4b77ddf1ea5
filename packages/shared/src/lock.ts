import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { AtelierError } from './errors.ts';
import { queueCall } from './redis.ts';

const EXPIRY_MS = 15_000;
const RENEW_MS = 5_000;
const RETRY_MS = 50;
const PATIENCE_MS = 60_000;

const RELEASE_SCRIPT = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0`;
const RENEW_SCRIPT = `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0`;

/**
 * Runs `work` while no other process does so under the same keys. It saves work and waiting, no more: a Redis that
 * forgets the lock must not cost data, so what must have one winner is a conditional put besides.
 * @throws AtelierError `conflict` when the others do not end within a minute
 */
export async function withLock<T>(redis: Redis, keys: readonly string[], work: () => Promise<T>): Promise<T> {
  const token = randomUUID();
  const held: string[] = [];
  const each = (script: string, ...argv: string[]): Promise<unknown> =>
    Promise.allSettled(held.map((key) => redis.eval(script, 1, key, token, ...argv)));
  const renew = setInterval(() => void each(RENEW_SCRIPT, String(EXPIRY_MS)), RENEW_MS);
  try {
    // In order, so that two that want the same keys cannot each hold one.
    for (const key of [...keys].sort()) {
      await acquire(redis, key, token);
      held.push(key);
    }
    return await work();
  } finally {
    clearInterval(renew);
    await each(RELEASE_SCRIPT);
  }
}

async function acquire(redis: Redis, key: string, token: string): Promise<void> {
  for (const deadline = Date.now() + PATIENCE_MS; Date.now() < deadline; await sleep(RETRY_MS)) {
    if ((await queueCall(() => redis.set(key, token, 'PX', EXPIRY_MS, 'NX'))) === 'OK') return;
  }
  throw new AtelierError(
    'conflict',
    `Another change of the same resource takes longer than ${PATIENCE_MS / 1_000} s`,
  );
}
