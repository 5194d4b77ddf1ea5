import { setTimeout as sleep } from 'node:timers/promises';
import {
  BREAKER,
  type DeliveryRecord,
  type GenerationInput,
  WebhookDeliveries,
  newAttemptToken,
} from '@atelier/shared';
import type { Resolve } from '../../apps/api/src/webhooks/address.ts';
import { WebhookDispatcher } from '../../apps/api/src/webhooks/dispatcher.ts';
import { type TestApi, startTestApi } from '../support/api.ts';
import { type WebhookReceiver, startWebhookReceiver } from '../support/webhook-receiver.ts';

const INPUT: GenerationInput = {
  prompt: 'a',
  model: 'mini',
  styles: [],
  width: 64,
  height: 64,
  steps: 4,
  guidance: 1,
  seed: 1,
  count: 1,
  format: 'png',
  priority: 'normal',
};
const QUICK = { failures: 3, cooldownMs: 600, maxCooldownMs: 600, probeMs: 2_000 };

let api: TestApi;
let deliveries: WebhookDeliveries;
let dispatcher: WebhookDispatcher | undefined;
let receivers: WebhookReceiver[] = [];
beforeAll(async () => {
  api = await startTestApi({
    ATELIER_WEBHOOKS: 'false',
    ATELIER_WEBHOOK_RETRY_S: Array.from({ length: 20 }, () => '0.05').join(),
  });
  deliveries = new WebhookDeliveries(api.client);
});
afterAll(async () => {
  deliveries.close();
  await api.close();
});
beforeEach(() => api.client.flushall());
afterEach(async () => {
  await dispatcher?.close();
  await Promise.all(receivers.splice(0).map((receiver) => receiver.close()));
});

async function receive(): Promise<WebhookReceiver> {
  const receiver = await startWebhookReceiver();
  receivers.push(receiver);
  return receiver;
}

async function finished(url: string, tenant = 'default') {
  const webhook = { url, events: ['succeeded' as const], origin: 'https://atelier.test' };
  const record = await api.jobs.create({ kind: 'generation', tenant, input: INPUT, webhook });
  const attempt = { tenant, id: record.id, token: newAttemptToken() };
  await api.jobs.start(attempt, 'w');
  await api.jobs.publish(attempt, [], {});
  return { tenant, id: record.id, event: 'succeeded' as const };
}

async function over(ref: Awaited<ReturnType<typeof finished>>): Promise<DeliveryRecord> {
  for (let i = 0; i < 500; i++, await sleep(20)) {
    const delivery = (await deliveries.get(ref))!;
    if (delivery.status !== 'pending') return delivery;
  }
  throw new Error('the delivery did not end');
}

describe('the breaker of an endpoint', () => {
  test('after failures in a row its deliveries wait for a probe, others do not, and all arrive in the end', async () => {
    const [broken, whole] = [await receive(), await receive()];
    let repaired = false;
    broken.answer = (_req, res) => res.writeHead(repaired ? 204 : 500).end();
    const stuck = await Promise.all(Array.from({ length: 20 }, () => finished(`${broken.url}/`)));
    dispatcher = new WebhookDispatcher(api.deps, { breaker: QUICK });
    await broken.until(3);
    await sleep(200);
    // Three failures in a row, and those on their way at that moment: four of one endpoint at once.
    const before = broken.received.length;
    expect(before).toBeLessThanOrEqual(3 + 4);
    expect((await over(await finished(`${whole.url}/`))).attempts).toHaveLength(1);

    await sleep(800);
    // One probe has gone out and failed.
    expect(broken.received.length).toBe(before + 1);
    repaired = true;
    for (const ref of stuck) expect(await over(ref)).toMatchObject({ status: 'delivered' });
    expect(broken.received.length).toBeLessThanOrEqual(before + 1 + 20);
  });

  test('waiting spends no attempt', async () => {
    const broken = await receive();
    broken.answer = (_req, res) => res.writeHead(500).end();
    const refs = await Promise.all(Array.from({ length: 10 }, () => finished(`${broken.url}/`)));
    dispatcher = new WebhookDispatcher(api.deps, { breaker: { ...QUICK, cooldownMs: 60_000 } });
    await broken.until(3);
    await sleep(500);
    const attempts = (await Promise.all(refs.map((ref) => deliveries.get(ref)))).map(
      (d) => d!.attempts.length,
    );
    expect(attempts.reduce((sum, n) => sum + n, 0)).toBe(broken.received.length);
    expect(attempts.filter((n) => n === 0).length).toBeGreaterThanOrEqual(3);
  });

  test('a redelivery does not wait', async () => {
    const broken = await receive();
    broken.answer = (_req, res) => res.writeHead(500).end();
    const ref = await finished(`${broken.url}/`);
    dispatcher = new WebhookDispatcher(api.deps, { breaker: { ...QUICK, cooldownMs: 60_000 } });
    await broken.until(3);
    await sleep(200);
    expect(broken.received).toHaveLength(3);
    broken.answer = (_req, res) => res.writeHead(204).end();
    await deliveries.redeliver(ref);
    expect(await over(ref)).toMatchObject({ status: 'delivered' });
    // And its success closes the breaker.
    expect(await over(await finished(`${broken.url}/`))).toMatchObject({ status: 'delivered' });
  });

  test('the failures of one tenant do not keep another from a host that both use', async () => {
    const shared = await receive();
    shared.answer = ({ path }, res) => res.writeHead(path === '/bad' ? 500 : 204).end();
    await finished(`${shared.url}/bad`, 'other');
    dispatcher = new WebhookDispatcher(api.deps, { breaker: { ...QUICK, cooldownMs: 60_000 } });
    await shared.until(3);
    expect(await over(await finished(`${shared.url}/good`))).toMatchObject({ status: 'delivered' });
  });

  test('an endpoint that hangs holds four places, and nobody else up', async () => {
    const [slow, whole] = [await receive(), await receive()];
    slow.answer = () => {};
    await Promise.all(Array.from({ length: 60 }, () => finished(`${slow.url}/`)));
    dispatcher = new WebhookDispatcher(api.deps, { breaker: BREAKER, timeoutMs: 3_000 });
    await slow.until(4);
    const began = performance.now();
    expect(await over(await finished(`${whole.url}/`))).toMatchObject({ status: 'delivered' });
    expect(performance.now() - began).toBeLessThan(2_000);
    expect(slow.received).toHaveLength(4);
  });

  test('no answer in time is a failure with its reason', async () => {
    const slow = await receive();
    slow.answer = (_req, res) => (slow.received.length === 1 ? undefined : res.writeHead(204).end());
    const ref = await finished(`${slow.url}/`);
    dispatcher = new WebhookDispatcher(api.deps, { timeoutMs: 300 });
    const { attempts } = await over(ref);
    expect(attempts.map(({ status, error }) => [status, error])).toEqual([
      [null, 'no answer within 300 ms'],
      [204, null],
    ]);
  });
});

describe('addresses', () => {
  /** As where the API has keys, and no setting allows more. */
  const publicOnly = () => ({
    ...api.deps,
    settings: { webhooks: { ...api.deps.settings.webhooks, allow: { names: [], networks: [] } } },
  });
  /** The first answer of a name server is public, the ones after it are this machine. */
  const rebinding = (): Resolve => {
    let asked = 0;
    return (_name, _options, callback) =>
      callback(null, [{ address: asked++ === 0 ? '93.184.216.34' : '127.0.0.1', family: 4 }]);
  };

  test('a name that means another address when it is connected to reaches nothing', async () => {
    const inside = await receive();
    const { port } = new URL(inside.url);
    const resolve = rebinding();
    // Somebody who checks the name first is told something harmless.
    await new Promise<void>((done) => resolve('x', { all: true }, () => done()));
    const ref = await finished(`http://rebound.test:${port}/`);
    dispatcher = new WebhookDispatcher(publicOnly(), { resolve });
    const { status, attempts } = await over(ref);
    expect([status, attempts.length]).toEqual(['failed', 1]);
    expect(attempts[0]).toMatchObject({
      status: null,
      error: 'rebound.test leads to an address that is not public',
    });
    expect(inside.received).toEqual([]);
  });

  test('an address that a setting allowed once is not connected to when it does so no more', async () => {
    const inside = await receive();
    const ref = await finished(`${inside.url}/`);
    dispatcher = new WebhookDispatcher(publicOnly());
    expect(await over(ref)).toMatchObject({
      status: 'failed',
      attempts: [{ status: null, error: '127.0.0.1 is an address that is not public' }],
    });
    expect(inside.received).toEqual([]);
  });

  test('a name that is not known is tried again', async () => {
    const inside = await receive();
    const { port } = new URL(inside.url);
    let asked = 0;
    const resolve: Resolve = (_name, _options, callback) =>
      asked++ === 0
        ? callback(Object.assign(new Error('getaddrinfo ENOTFOUND new.test'), { code: 'ENOTFOUND' }), [])
        : callback(null, [{ address: '127.0.0.1', family: 4 }]);
    const ref = await finished(`http://new.test:${port}/`);
    dispatcher = new WebhookDispatcher(api.deps, { resolve });
    const { status, attempts } = await over(ref);
    expect(status).toBe('delivered');
    expect(attempts.map(({ error }) => error)).toEqual(['getaddrinfo ENOTFOUND new.test', null]);
  });
});
