import { Counter, Registry } from 'prom-client';
import { checkReadiness, startHealthServer } from './health.ts';

test('answers liveness, readiness by part, and metrics', async () => {
  const registry = new Registry();
  new Counter({ name: 'pictures_total', help: 'pictures', registers: [registry] }).inc(3);
  const parts = { redis: true, store: true };
  const check = (part: keyof typeof parts) => async (): Promise<void> => {
    if (!parts[part]) throw new Error(`${part} is away`);
  };
  const server = await startHealthServer({
    host: '127.0.0.1',
    port: 0,
    registry,
    checks: { redis: check('redis'), store: check('store') },
  });
  const get = (path: string): Promise<Response> => fetch(`http://127.0.0.1:${server.port}${path}`);
  try {
    expect((await get('/healthz')).status).toBe(200);
    expect((await get('/readyz')).status).toBe(200);
    parts.store = false;
    const unready = await get('/readyz');
    expect(unready.status).toBe(503);
    expect(await unready.json()).toEqual({
      ready: false,
      checks: { redis: { ok: true }, store: { ok: false, error: 'store is away' } },
    });
    expect((await get('/healthz')).status).toBe(200);
    expect(await (await get('/metrics')).text()).toContain('pictures_total 3');
    expect((await get('/nothing')).status).toBe(404);
    parts.store = true;
    expect((await get('/readyz')).status).toBe(200);
  } finally {
    await server.close();
  }
});

test('a check that does not answer has failed', async () => {
  const readiness = await checkReadiness({ stuck: () => new Promise(() => {}), fine: async () => {} }, 50);
  expect(readiness).toEqual({
    ready: false,
    checks: { stuck: { ok: false, error: 'no answer within 50 ms' }, fine: { ok: true } },
  });
});
