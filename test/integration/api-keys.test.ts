import { setTimeout as sleep } from 'node:timers/promises';
import {
  ApiKey,
  ApiKeyList,
  ApiKeyStore,
  type ApiKeyRequest,
  NewApiKey,
  TenantList,
  createRedis,
} from '@atelier/shared';
import { Authenticator, KEY_CACHE_MS } from '../../apps/api/src/auth.ts';
import { type ApiServer, startServer } from '../../apps/api/src/server.ts';
import { type TestApi, expectJson, expectProblem, startTestApi, submit } from '../support/api.ts';
import { bearer, makeKey } from '../support/keys.ts';
import { until } from '../support/studio.ts';

const ADMIN = 'an-operators-key-of-the-test';

let api: TestApi;
let second: ApiServer | undefined;
afterEach(async () => {
  await second?.close();
  second = undefined;
  await api.close();
});

const get = (path: string, key?: string, url = api.url) =>
  fetch(url + path, { headers: key === undefined ? {} : bearer(key) });
const post = (body: unknown, key?: string) =>
  fetch(`${api.url}/v1/keys`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...(key === undefined ? {} : bearer(key)) },
    body: JSON.stringify(body),
  });
const revoke = (id: string, key = ADMIN) =>
  fetch(`${api.url}/v1/keys/${id}`, { method: 'DELETE', headers: bearer(key) });
const create = async (body: Partial<ApiKeyRequest>, key?: string) =>
  expectJson(await post({ name: 'ci', scopes: ['read'], ...body }, key), 201, NewApiKey);

/** Every value in Redis, of whatever type. */
async function everything(): Promise<string> {
  const texts: unknown[] = [];
  for (const key of await api.client.keys('*')) {
    texts.push(key);
    if ((await api.client.type(key)) === 'hash') texts.push(await api.client.hgetall(key));
    else texts.push(await api.client.dumpBuffer(key).then(String));
  }
  return JSON.stringify(texts);
}

describe('with a key of the environment', () => {
  beforeEach(async () => {
    api = await startTestApi({ ATELIER_API_KEYS: ADMIN });
  });

  test('a key is shown once and kept as its SHA-256; it acts for its tenant', async () => {
    const made = await create({ tenant: 'acme', scopes: ['read', 'generate', 'read'] }, ADMIN);
    expect(made.key).toMatch(/^atl_[a-z0-9]{8}_[A-Za-z0-9]{40}$/);
    expect(made).toMatchObject({
      scopes: ['read', 'generate'],
      prefix: made.key.slice(0, 12),
      last_four: made.key.slice(-4),
      last_used_at: null,
    });
    const text = await everything();
    expect(text).toContain(made.id);
    expect(text).not.toContain(made.key.slice(13));

    const job = await submit(api, { prompt: 'a' }, bearer(made.key));
    expect(job.status).toBe(202);
    expect((await api.jobs.list('acme', 'generation')).records).toHaveLength(1);
    expect((await api.jobs.list('default', 'generation')).records).toEqual([]);
    // The worker finds what it needs by the payload alone.
    const { id } = (await job.json()) as { id: string };
    const payload = await api.client.hget(`{atelier}:generations:${id}`, 'data');
    expect(JSON.parse(payload!)).toEqual({ tenant: 'acme', id });

    const list = await expectJson(await get('/v1/keys', ADMIN), 200, ApiKeyList);
    expect(list).toMatchObject({ data: [{ id: made.id, name: 'ci', tenant: 'acme' }], next_cursor: null });
    expect(JSON.stringify(list)).not.toContain(made.key.slice(13));
    const tenants = await expectJson(await get('/v1/tenants', ADMIN), 200, TenantList);
    expect(tenants.data).toEqual([
      { name: 'acme', keys: 1, generations: 1, trainings: 0 },
      { name: 'default', keys: 0, generations: 0, trainings: 0 },
    ]);
  });

  test('a revoked key is refused at once here, within seconds by another process, and stays listed', async () => {
    second = await startServer(api.deps, { host: '127.0.0.1', port: 0 });
    const made = await create({}, ADMIN);
    for (const url of [api.url, second.url])
      expect((await get('/v1/models', made.key, url)).status).toBe(200);
    const { revoked_at } = await expectJson(await revoke(made.id), 200, ApiKey);
    const { detail } = await expectProblem(await get('/v1/models', made.key), 401, 'unauthorized');
    expect(detail).toContain(`this key was revoked at ${revoked_at}`);
    const since = Date.now();
    while ((await get('/v1/models', made.key, second.url)).status === 200) await sleep(50);
    expect(Date.now() - since).toBeLessThan(KEY_CACHE_MS + 1_000);

    expect(await expectJson(await revoke(made.id), 200, ApiKey)).toMatchObject({ revoked_at });
    const { data } = await expectJson(await get('/v1/keys', ADMIN), 200, ApiKeyList);
    expect(data).toMatchObject([{ id: made.id, revoked_at }]);
    for (const id of ['key_' + '0'.repeat(32), 'key_1', '..%2Fkeys'])
      await expectProblem(await revoke(id), 404, 'not_found');
  });

  test('an expired key is refused with the reason', async () => {
    const expires_at = new Date(Date.now() - 1).toISOString();
    const expired = await new ApiKeyStore(api.client).create(
      { name: 'old', tenant: 'acme', scopes: ['admin'], expires_at },
      { first: true },
    );
    const { detail } = await expectProblem(await get('/v1/models', expired.key), 401, 'unauthorized');
    expect(detail).toContain(`this key expired at ${expires_at}`);
    const tenants = await expectJson(await get('/v1/tenants', ADMIN), 200, TenantList);
    expect(tenants.data[0]).toMatchObject({ name: 'acme', keys: 0 });
  });

  test('the last use is noted, once a minute', async () => {
    const { id, key } = await makeKey(api, 'acme');
    const lastUse = async () => {
      const { data } = await expectJson(await get('/v1/keys?tenant=acme', ADMIN), 200, ApiKeyList);
      return data[0]!.last_used_at;
    };
    const before = Date.now();
    await get('/v1/models', key);
    await until(async () => (await lastUse()) !== null);
    expect(Date.parse((await lastUse())!)).toBeGreaterThanOrEqual(before);
    await api.client.hset('{atelier}:api-keys:used', id, '2026-01-01T00:00:00.000Z');
    for (let i = 0; i < 5; i++) await get('/v1/models', key);
    await sleep(100);
    expect(await lastUse()).toBe('2026-01-01T00:00:00.000Z');
  });

  test('keys are listed in pages, by tenant', async () => {
    const made = [];
    for (const tenant of ['b', 'a', 'b', 'b']) made.push((await makeKey(api, tenant)).id);
    const page = await expectJson(await get('/v1/keys?limit=3', ADMIN), 200, ApiKeyList);
    expect(page.data.map(({ id }) => id)).toEqual(made.slice(0, 3));
    const rest = await get(`/v1/keys?limit=3&cursor=${page.next_cursor}`, ADMIN);
    expect(await expectJson(rest, 200, ApiKeyList)).toMatchObject({
      data: [{ id: made[3] }],
      next_cursor: null,
    });
    const ofA = await expectJson(await get('/v1/keys?tenant=a', ADMIN), 200, ApiKeyList);
    expect(ofA.data.map(({ id }) => id)).toEqual([made[1]]);
  });

  test.each([
    [{}, ['name', 'scopes']],
    [{ name: ' ', scopes: [] }, ['name', 'scopes']],
    [{ name: 'x', scopes: ['write'] }, ['scopes[0]']],
    [{ name: '\u001b[2Jx', scopes: ['read'] }, ['name']],
    [{ name: 'x', scopes: ['read'], tenant: 'Acme/..' }, ['tenant']],
    [{ name: 'x', scopes: ['read'], expires_at: '2026-01-01T00:00:00Z' }, ['expires_at']],
    [{ name: 'x', scopes: ['read'], expires_at: 'tomorrow' }, ['expires_at']],
    [{ name: 'x', scopes: ['read'], key: 'mine' }, ['key']],
  ])('%j is no key', async (body, fields) => {
    const { errors } = await expectProblem(await post(body, ADMIN), 400, 'validation_failed');
    expect(errors!.map(({ field }) => field).sort()).toEqual(fields);
    expect(await new ApiKeyStore(api.client).any()).toBe(false);
  });

  test('while Redis is away created keys are neither let in nor called wrong; the environment’s goes on', async () => {
    const { key } = await makeKey(api, 'acme');
    await api.redis.restart(async () => {
      await expectProblem(await get('/v1/models', key), 503, 'queue_unavailable');
      expect((await get('/v1/models', ADMIN)).status).toBe(200);
      await expectProblem(await get('/v1/models'), 401, 'unauthorized');
    });
    await until(async () => (await get('/v1/models', key)).status === 200);
    // Connections that are made anew after an outage, beside this one, may not be closed while they are made.
    await until(async () => (await get('/v1/queue', key)).status === 200);
    await sleep(1_000);
  });

  test('admin contains every scope', async () => {
    const { key } = await create({ scopes: ['admin'], tenant: 'acme' }, ADMIN);
    expect((await submit(api, { prompt: 'a' }, bearer(key))).status).toBe(202);
    expect((await get('/v1/loras', key)).status).toBe(200);
  });
});

describe('without keys', () => {
  beforeEach(async () => {
    api = await startTestApi();
  });

  test('everything is allowed, whatever a program sends for a key', async () => {
    for (const key of [undefined, 'sk-of-another-service', `atl_${'a'.repeat(8)}_${'A'.repeat(40)}`])
      expect((await get('/v1/keys', key)).status).toBe(200);
  });

  test('the first key must be able to make the others; nobody locks himself out', async () => {
    for (const more of [
      { scopes: ['read', 'loras:write'] },
      { scopes: ['admin'], expires_at: new Date(Date.now() + 60_000).toISOString() },
    ]) {
      const { detail } = await expectProblem(await post({ name: 'x', ...more }), 409, 'conflict');
      expect(detail).toContain('needs the scope admin and no expires_at');
    }
    expect((await get('/v1/models')).status).toBe(200);
  });

  test('the first key closes this process at once and others within seconds, and revoking it opens nothing', async () => {
    second = await startServer(api.deps, { host: '127.0.0.1', port: 0 });
    expect((await get('/v1/models', undefined, second.url)).status).toBe(200);
    const { id, key } = await create({ scopes: ['admin'] });
    const since = Date.now();
    await expectProblem(await get('/v1/models'), 401, 'unauthorized');
    while ((await get('/v1/models', undefined, second.url)).status === 200) await sleep(50);
    expect(Date.now() - since).toBeLessThan(KEY_CACHE_MS + 1_000);
    expect((await get('/v1/models', key, second.url)).status).toBe(200);
    expect(await (await get('/')).text()).toContain('Authorization: Bearer YOUR_KEY');

    await create({ scopes: ['read'], tenant: 'acme' }, key);
    expect((await revoke(id, key)).status).toBe(200);
    await sleep(KEY_CACHE_MS + 100);
    await expectProblem(await get('/v1/models'), 401, 'unauthorized');
  });

  test('a process that could never ask Redis stays closed', async () => {
    const redis = createRedis({ REDIS_URL: 'redis://127.0.0.1:1' }, 'api');
    try {
      const authenticator = new Authenticator([], new ApiKeyStore(redis));
      await expect(authenticator.identify(undefined)).rejects.toMatchObject({ code: 'queue_unavailable' });
    } finally {
      redis.disconnect();
    }
  });
});
