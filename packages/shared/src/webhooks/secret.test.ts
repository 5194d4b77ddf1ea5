import type { Redis } from 'ioredis';
import { type TestRedis, startTestRedis } from '../../../../test/support/redis.ts';
import { createRedis } from '../redis.ts';
import { webhookSecret } from './secret.ts';

let server: TestRedis;
let redis: Redis;
beforeAll(async () => {
  server = await startTestRedis();
  redis = createRedis({ REDIS_URL: server.url }, 'worker');
});
afterAll(async () => {
  redis.disconnect();
  await server.stop();
});

test('without a secret of the installation each tenant has one that stays, whoever asks first', async () => {
  const asked = await Promise.all(Array.from({ length: 10 }, () => webhookSecret(redis, null, 'a')));
  expect(new Set(asked).size).toBe(1);
  expect(asked[0]).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
  expect(await webhookSecret(redis, null, 'b')).not.toBe(asked[0]);
});

test('with one, the default tenant has that, and others have their own that follow from it', async () => {
  const installation = `whsec_${Buffer.alloc(32, 7).toString('base64')}`;
  expect(await webhookSecret(redis, installation, 'default')).toBe(installation);
  const other = await webhookSecret(redis, installation, 'other');
  expect(other).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
  expect(other).not.toBe(installation);
  expect(await webhookSecret(redis, installation, 'other')).toBe(other);
  expect(await webhookSecret(redis, installation, 'third')).not.toBe(other);
});
