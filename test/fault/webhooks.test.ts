import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type GenerationInput,
  type JobRecord,
  WebhookDeliveries,
  type WebhookEvent,
  newAttemptToken,
} from '@atelier/shared';
import { WebhookDispatcher } from '../../apps/api/src/webhooks/dispatcher.ts';
import { type TestApi, startTestApi } from '../support/api.ts';
import { type WebhookReceiver, startWebhookReceiver } from '../support/webhook-receiver.ts';

const PROJECT = join(import.meta.dirname, '../..');
const LEASE_MS = 1_500;
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

let api: TestApi;
let deliveries: WebhookDeliveries;
let receiver: WebhookReceiver;
let processes: ChildProcess[] = [];
let dispatchers: WebhookDispatcher[] = [];
beforeAll(async () => {
  api = await startTestApi({ ATELIER_WEBHOOKS: 'false', ATELIER_WEBHOOK_RETRY_S: '0.2,0.2,0.2' });
  deliveries = new WebhookDeliveries(api.client);
});
afterAll(async () => {
  deliveries.close();
  await api.close();
});
beforeEach(async () => {
  await api.client.flushall();
  receiver = await startWebhookReceiver();
});
afterEach(async () => {
  for (const child of processes.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
  await Promise.all(dispatchers.splice(0).map((dispatcher) => dispatcher.close()));
  await receiver.close();
});

function dispatcherProcess(): ChildProcess {
  const child = spawn(process.execPath, [join(PROJECT, 'test/support/webhook-process.ts')], {
    cwd: PROJECT,
    stdio: 'inherit',
    env: {
      ...process.env,
      REDIS_URL: api.redis.url,
      LOG_LEVEL: 'silent',
      ATELIER_WEBHOOK_RETRY_S: '0.2,0.2,0.2',
      LEASE_MS: String(LEASE_MS),
    },
  });
  processes.push(child);
  return child;
}

function dispatch(): WebhookDispatcher {
  const made = new WebhookDispatcher(api.deps, { leaseMs: LEASE_MS });
  dispatchers.push(made);
  return made;
}

async function finished(): Promise<JobRecord & { event: WebhookEvent }> {
  const webhook = { url: `${receiver.url}/`, events: ['succeeded' as const], origin: 'https://atelier.test' };
  const record = await api.jobs.create({ kind: 'generation', input: INPUT, webhook });
  const attempt = { tenant: record.tenant, id: record.id, token: newAttemptToken() };
  await api.jobs.start(attempt, 'w');
  await api.jobs.publish(attempt, [], {});
  return { ...record, event: 'succeeded' };
}

async function over(job: JobRecord & { event: WebhookEvent }) {
  for (let i = 0; i < 500; i++, await sleep(20)) {
    const delivery = (await deliveries.get(job))!;
    if (delivery.status !== 'pending') return delivery;
  }
  throw new Error('the delivery did not end');
}

test('killed between the send and the note that it was received: sent once more, with the same id', async () => {
  const child = dispatcherProcess();
  const began = Promise.withResolvers<void>();
  receiver.answer = (_req, res) => {
    if (receiver.received.length > 1) return res.writeHead(204).end();
    // It is received, and whoever sent it will never know.
    child.kill('SIGKILL');
    began.resolve();
    return res.destroy();
  };
  const job = await finished();
  await began.promise;
  await once(child, 'exit');
  dispatch();
  const [first, second] = await receiver.until(2);
  expect(second).toMatchObject({ body: first!.body, headers: { 'webhook-id': `${job.id}_succeeded` } });
  expect(second!.at - first!.at).toBeLessThan(2 * LEASE_MS + 1_000);
  // The attempt that nobody survived is not in the log; the delivery is, once.
  expect(await over(job)).toMatchObject({ status: 'delivered', attempts: [{ status: 204 }] });
  await sleep(2 * LEASE_MS);
  expect(receiver.received).toHaveLength(2);
});

test('frozen past its lease while another delivered: what it learns when it wakes up changes nothing', async () => {
  const child = dispatcherProcess();
  const began = Promise.withResolvers<void>();
  receiver.answer = async (_req, res) => {
    if (receiver.received.length > 1) return res.writeHead(204).end();
    child.kill('SIGSTOP');
    began.resolve();
    await sleep(200);
    return res.writeHead(500).end();
  };
  const job = await finished();
  await began.promise;
  dispatch();
  await receiver.until(2);
  await over(job);
  child.kill('SIGCONT');
  for (let i = 0; i < 250 && (await deliveries.get(job))!.attempts.length < 2; i++) await sleep(20);
  const delivery = (await deliveries.get(job))!;
  expect(delivery).toMatchObject({ status: 'delivered', due: null });
  expect(delivery.attempts.map(({ status }) => status)).toEqual([204, 500]);
  await sleep(2 * LEASE_MS);
  expect(receiver.received).toHaveLength(2);
});

test('nobody sends for a while, and Redis is restarted: nothing is lost, nothing is sent twice', async () => {
  const jobs = [await finished(), await finished(), await finished()];
  await sleep(1_100); // Redis writes its file once a second.
  await api.redis.restart();
  await api.client.ping().catch(() => {});
  for (let i = 0; i < 100 && api.client.status !== 'ready'; i++) await sleep(50);
  dispatch();
  for (const job of jobs) expect(await over(job)).toMatchObject({ status: 'delivered' });
  expect(receiver.received).toHaveLength(3);
});

test('Redis goes away under a dispatcher and comes back: it goes on', async () => {
  dispatch();
  await over(await finished());
  await api.redis.restart(() => sleep(1_500));
  for (let i = 0; i < 100 && api.client.status !== 'ready'; i++) await sleep(50);
  expect(await over(await finished())).toMatchObject({ status: 'delivered' });
});

test('several dispatchers share the work: each delivery is sent once', async () => {
  for (let i = 0; i < 4; i++) dispatch();
  const jobs = await Promise.all(Array.from({ length: 60 }, finished));
  for (const job of jobs) expect(await over(job)).toMatchObject({ status: 'delivered' });
  expect(receiver.received).toHaveLength(60);
  expect(await deliveries.pending()).toBe(0);
});
