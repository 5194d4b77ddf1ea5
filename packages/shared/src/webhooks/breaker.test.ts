import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { type TestRedis, startTestRedis } from '../../../../test/support/redis.ts';
import { createRedis } from '../redis.ts';
import { type Admission, Breaker } from './breaker.ts';

const OPTIONS = { failures: 3, cooldownMs: 300, maxCooldownMs: 1_000, probeMs: 400 };
const endpoint = { tenant: 'default', origin: 'https://hooks.test' };

let server: TestRedis;
let redis: Redis;
let breaker: Breaker;
beforeAll(async () => {
  server = await startTestRedis();
  redis = createRedis({ REDIS_URL: server.url }, 'worker');
  breaker = new Breaker(redis, OPTIONS);
});
afterAll(async () => {
  redis.disconnect();
  await server.stop();
});
beforeEach(() => redis.flushall());

async function open(): Promise<void> {
  for (let i = 0; i < OPTIONS.failures; i++) await breaker.failed(endpoint, false);
}
const waitOf = (admission: Admission): number => ('waitMs' in admission ? admission.waitMs : 0);

test('it opens after failures in a row, and a success in between forgets those before it', async () => {
  await breaker.failed(endpoint, false);
  await breaker.failed(endpoint, false);
  await breaker.succeeded(endpoint);
  await breaker.failed(endpoint, false);
  await breaker.failed(endpoint, false);
  expect(await breaker.admit(endpoint)).toEqual({ probe: false });
  await breaker.failed(endpoint, false);
  const wait = waitOf(await breaker.admit(endpoint));
  expect(wait).toBeGreaterThan(200);
  expect(wait).toBeLessThanOrEqual(300);
  expect(await breaker.admit({ ...endpoint, origin: 'https://other.test' })).toEqual({ probe: false });
  expect(await breaker.admit({ ...endpoint, tenant: 'other' })).toEqual({ probe: false });
});

test('of all that ask after the cooldown one is the probe', async () => {
  await open();
  await sleep(320);
  const admissions = await Promise.all(Array.from({ length: 20 }, () => breaker.admit(endpoint)));
  expect(admissions.filter((admission) => 'probe' in admission)).toEqual([{ probe: true }]);
  await breaker.succeeded(endpoint);
  expect(await breaker.admit(endpoint)).toEqual({ probe: false });
});

test('a probe that fails opens it for twice as long, up to the most', async () => {
  await open();
  await sleep(320);
  expect(await breaker.admit(endpoint)).toEqual({ probe: true });
  await breaker.failed(endpoint, true);
  const second = waitOf(await breaker.admit(endpoint));
  expect(second).toBeGreaterThan(500);
  expect(second).toBeLessThanOrEqual(600);
  await breaker.failed(endpoint, true);
  expect(waitOf(await breaker.admit(endpoint))).toBeLessThanOrEqual(1_000);
});

test('a probe that never reports is replaced', async () => {
  await open();
  await sleep(320);
  expect(await breaker.admit(endpoint)).toEqual({ probe: true });
  expect(waitOf(await breaker.admit(endpoint))).toBeLessThanOrEqual(400);
  await sleep(420);
  expect(await breaker.admit(endpoint)).toEqual({ probe: true });
});

test('those that were on their way when it opened change nothing', async () => {
  await open();
  for (let i = 0; i < 10; i++) await breaker.failed(endpoint, false);
  expect(waitOf(await breaker.admit(endpoint))).toBeLessThanOrEqual(300);
});
