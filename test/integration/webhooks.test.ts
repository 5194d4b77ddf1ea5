import { setTimeout as sleep } from 'node:timers/promises';
import {
  DEFAULT_TENANT,
  DeliveryList,
  DeliveryView,
  GenerationJob,
  type JobWebhook,
  TrainingInput,
  TrainingJob,
  WebhookSecret,
  newAttemptToken,
} from '@atelier/shared';
import { Webhook } from 'standardwebhooks';
import { type TestApi, expectJson, expectProblem, startTestApi, submit } from '../support/api.ts';
import { type InstantWorker, startInstantWorker } from '../support/instant-worker.ts';
import { type WebhookReceiver, startWebhookReceiver } from '../support/webhook-receiver.ts';

const EVERY = ['started', 'succeeded', 'failed', 'canceled'];
const ERROR = { code: 'engine_failed', message: 'no', retryable: true };

let api: TestApi;
let receiver: WebhookReceiver;
let worker: InstantWorker | undefined;
beforeAll(async () => {
  api = await startTestApi({ ATELIER_WEBHOOK_RETRY_S: '0.2,0.2,0.2' });
});
afterAll(() => api.close());
beforeEach(async () => {
  await api.client.flushall();
  receiver = await startWebhookReceiver();
});
afterEach(async () => {
  await worker?.close();
  worker = undefined;
  await receiver.close();
});

const get = (path: string) => fetch(api.url + path);
const post = (path: string) => fetch(api.url + path, { method: 'POST' });
const deliveriesOf = async (id: string) =>
  (await expectJson(await get(`/v1/generations/${id}/deliveries`), 200, DeliveryList)).data;
const secret = async () => (await expectJson(await get('/v1/webhooks/secret'), 200, WebhookSecret)).secret;

async function submitted(webhook: Record<string, unknown> = {}): Promise<GenerationJob> {
  const body = { prompt: 'a cat', steps: 2, webhook: { url: `${receiver.url}/hook`, ...webhook } };
  return expectJson(await submit(api, body), 202, GenerationJob);
}

/** Polls until the delivery is over. */
async function settled(id: string, status: string, attempts: number): Promise<DeliveryView> {
  for (let i = 0; i < 500; i++) {
    const [delivery] = await deliveriesOf(id);
    if (delivery?.status === status && delivery.attempts.length >= attempts) return delivery;
    await sleep(20);
  }
  throw new Error(`no delivery became ${status}: ${JSON.stringify(await deliveriesOf(id))}`);
}

test('a job that ends is told of, with the job as the API shows it, signed as Standard Webhooks has it', async () => {
  worker = startInstantWorker(api);
  const job = await submitted();
  const [{ headers, body, path, event }] = (await receiver.until(1)) as [(typeof receiver.received)[0]];
  expect(path).toBe('/hook');
  expect(headers).toMatchObject({
    'content-type': 'application/json',
    'webhook-id': `${job.id}_succeeded`,
  });
  expect(new Webhook(await secret()).verify(body, headers)).toEqual(event);
  expect(() => new Webhook(`whsec_${'A'.repeat(43)}=`).verify(body, headers)).toThrow(
    'No matching signature',
  );
  const shown = await expectJson(await get(`/v1/generations/${job.id}`), 200, GenerationJob);
  expect(GenerationJob.parse(event.data)).toEqual(shown);
  expect(event).toMatchObject({ type: 'generation.succeeded', timestamp: shown.finished_at });
  expect(shown.webhook).toEqual({ url: `${receiver.url}/hook`, events: ['succeeded', 'failed', 'canceled'] });
  // The URLs in it lead to the pictures.
  expect((await fetch(shown.output!.images[0]!.url)).status).toBe(200);

  const [delivery] = await deliveriesOf(job.id);
  expect(delivery).toMatchObject({
    status: 'delivered',
    next_attempt_at: null,
    type: 'generation.succeeded',
  });
  expect(delivery!.attempts).toEqual([
    { started_at: expect.any(String), status: 204, duration_ms: expect.any(Number), error: null },
  ]);
});

test('deliveries that are not over are counted in the metrics', async () => {
  worker = startInstantWorker(api);
  const metric = async () =>
    /^atelier_webhooks_pending (.*)$/m.exec(await (await get('/metrics')).text())?.[1];
  expect(await metric()).toBe('0');
  receiver.answer = () => {};
  await submitted();
  await receiver.until(1);
  expect(await metric()).toBe('1');
});

test('a job without a webhook tells nobody, and has no deliveries', async () => {
  worker = startInstantWorker(api);
  const job = await expectJson(
    await submit(api, { prompt: 'a', steps: 2 }, { Prefer: 'wait=10' }),
    200,
    GenerationJob,
  );
  expect(job.webhook).toBeNull();
  expect(await deliveriesOf(job.id)).toEqual([]);
  expect(await api.client.zcard('{atelier}:webhooks:due')).toBe(0);
});

describe('every way to an end', () => {
  const webhook = (): JobWebhook => ({
    url: `${receiver.url}/`,
    events: ['started', 'succeeded', 'failed', 'canceled'],
    origin: 'https://atelier.test',
  });
  const create = () => {
    const input = { prompt: 'a', model: 'mini', styles: [], width: 64, height: 64, steps: 4, guidance: 1 };
    const rest = { seed: 1, count: 1, format: 'png', priority: 'normal' } as const;
    return api.jobs.create({ kind: 'generation', input: { ...input, ...rest }, webhook: webhook() });
  };
  const start = async () => {
    const record = await create();
    const attempt = { tenant: record.tenant, id: record.id, token: newAttemptToken() };
    await api.jobs.start(attempt, 'w');
    return attempt;
  };
  const types = async (count: number) => {
    await receiver.until(count);
    // What must not come would come now.
    await sleep(100);
    return receiver.received.map(({ event }) => [event.type, event.data['status']].join(' ')).sort();
  };

  test.each([
    ['publish', 'succeeded', (a: never) => api.jobs.publish(a, [], {})],
    ['fail', 'failed', (a: never) => api.jobs.fail(a, ERROR)],
    ['cancel', 'canceled', (a: never) => api.jobs.cancel(a)],
    ['abandon, when the queue gave it up', 'failed', (a: never) => api.jobs.abandon(a, ERROR)],
    [
      'retry after a request to cancel',
      'canceled',
      async (a: never) => {
        await api.jobs.requestCancel(a);
        await api.jobs.retry(a);
      },
    ],
  ])('%s', async (_name, status, end) => {
    await end((await start()) as never);
    expect(await types(2)).toEqual([`generation.${status} ${status}`, 'generation.started running'].sort());
  });

  test('canceled while it was queued', async () => {
    const { id } = await create();
    await post(`/v1/generations/${id}/cancel`);
    expect(await types(1)).toEqual(['generation.canceled canceled']);
  });

  test('failed by the reconciler, because the queue gave up on it', async () => {
    const record = await create();
    await api.queues.enqueueGeneration(record);
    const key = `{atelier}:generations`;
    await api.client.zrem(`${key}:prioritized`, record.id);
    await api.client.zadd(`${key}:failed`, Date.now(), record.id);
    await api.queues.reconcile(api.jobs);
    expect(await types(1)).toEqual(['generation.failed failed']);
    expect(receiver.received[0]!.event.data['error']).toMatchObject({ code: 'job_stalled' });
  });

  test('a job that starts twice is told of once, and ends once', async () => {
    const first = await start();
    await api.jobs.giveBack(first);
    const second = { ...first, token: newAttemptToken() };
    await api.jobs.start(second, 'w');
    await api.jobs.publish(second, [], {});
    await api.jobs.publish(second, [], {});
    expect(await types(2)).toEqual(['generation.started running', 'generation.succeeded succeeded']);
  });

  test('only what was asked for is told', async () => {
    const input = TrainingInput.parse({ name: 'ink', dataset: 'dst_1', model: 'mini', resolution: 128 });
    const record = await api.jobs.create({
      kind: 'training',
      input,
      webhook: { ...webhook(), events: ['succeeded'] },
    });
    const attempt = { tenant: record.tenant, id: record.id, token: newAttemptToken() };
    await api.jobs.start(attempt, 't');
    await api.jobs.publishLora(attempt, 'ink@1');
    expect(await types(1)).toEqual(['training.succeeded succeeded']);
    expect(TrainingJob.parse(receiver.received[0]!.event.data).output).toEqual({ lora: 'ink@1' });
    const { data } = await expectJson(await get(`/v1/trainings/${record.id}/deliveries`), 200, DeliveryList);
    expect(data).toHaveLength(1);
  });

  test('a job whose client was told that it was not accepted is not told of', async () => {
    const record = await create();
    await api.jobs.disown(record, ERROR);
    await sleep(200);
    expect(receiver.received).toEqual([]);
  });
});

describe('answers', () => {
  test('500 is tried again, with the same id and body and a signature of its own', async () => {
    worker = startInstantWorker(api);
    let failures = 2;
    receiver.answer = (_req, res) => res.writeHead(failures-- > 0 ? 500 : 200).end();
    const job = await submitted();
    const [first, , third] = await receiver.until(3);
    expect(third).toMatchObject({
      body: first!.body,
      headers: { 'webhook-id': first!.headers['webhook-id'] },
    });
    for (const { body, headers } of receiver.received) new Webhook(await secret()).verify(body, headers);
    expect(third!.at - first!.at).toBeGreaterThan(300);
    const { attempts } = await settled(job.id, 'delivered', 3);
    expect(attempts.map(({ status, error }) => [status, error])).toEqual([
      [500, 'found 500; allowed is 2xx'],
      [500, 'found 500; allowed is 2xx'],
      [200, null],
    ]);
  });

  test('a delivery that fails every time is given up, and sent again when a person asks', async () => {
    worker = startInstantWorker(api);
    receiver.answer = (_req, res) => res.writeHead(404).end();
    const job = await submitted();
    const given = await settled(job.id, 'failed', 4);
    expect(given).toMatchObject({ next_attempt_at: null });
    expect(given.attempts).toHaveLength(4);

    receiver.answer = (_req, res) => res.writeHead(200).end();
    const path = `/v1/generations/${job.id}/deliveries/${given.id}/redeliver`;
    expect(await expectJson(await post(path), 202, DeliveryView)).toMatchObject({ status: 'pending' });
    const again = await settled(job.id, 'delivered', 5);
    expect(again.attempts.at(-1)).toMatchObject({ status: 200, error: null });
    expect(receiver.received.at(-1)!.body).toBe(receiver.received[0]!.body);
  });

  test('410 ends the delivery', async () => {
    worker = startInstantWorker(api);
    receiver.answer = (_req, res) => res.writeHead(410).end();
    const job = await submitted();
    await settled(job.id, 'failed', 1);
    await sleep(500);
    expect(receiver.received).toHaveLength(1);
  });

  test('a redirect is not followed, and the log says where it leads', async () => {
    worker = startInstantWorker(api);
    const elsewhere = await startWebhookReceiver();
    try {
      receiver.answer = (_req, res) => res.writeHead(307, { Location: `${elsewhere.url}/moved` }).end();
      const job = await submitted();
      const { attempts } = await settled(job.id, 'failed', 4);
      expect(attempts[0]).toMatchObject({
        status: 307,
        error: `found 307, a redirect to ${elsewhere.url}/moved, which is not followed; allowed is 2xx`,
      });
      expect(elsewhere.received).toEqual([]);
    } finally {
      await elsewhere.close();
    }
  });

  test('an endless answer costs nothing: its status counts, its body is not read', async () => {
    worker = startInstantWorker(api);
    let written = 0;
    receiver.answer = (_req, res) => {
      res.writeHead(200);
      const more = (): void => {
        if (res.destroyed) return;
        written += 65_536;
        if (res.write(Buffer.alloc(65_536))) setImmediate(more);
        else res.once('drain', more);
      };
      more();
    };
    const job = await submitted();
    const { attempts } = await settled(job.id, 'delivered', 1);
    expect(attempts[0]!.duration_ms).toBeLessThan(5_000);
    const soon = written;
    await sleep(200);
    expect(written).toBe(soon);
  });

  test('a receiver that asks for time gets it', async () => {
    worker = startInstantWorker(api);
    let failures = 1;
    receiver.answer = (_req, res) =>
      failures-- > 0 ? res.writeHead(429, { 'Retry-After': '1' }).end() : res.writeHead(200).end();
    await submitted();
    const [first, second] = await receiver.until(2);
    expect(second!.at - first!.at).toBeGreaterThan(950);
  });
});

describe('requests', () => {
  test.each([
    ['a text', 'https://example.com/', /webhook: found "https:\/\/example.com\/", allowed is an object/],
    ['http elsewhere', { url: 'http://example.com/' }, /webhook\.url: .*allowed is https/],
    ['a private address', { url: 'https://10.0.0.1/' }, /10\.0\.0\.1 is an address that is not public/],
    ['metadata', { url: 'https://[::ffff:169.254.169.254]/' }, /not public/],
    ['no events', { url: 'https://example.com/', events: [] }, /webhook\.events/],
    [
      'an unknown event',
      { url: 'https://example.com/', events: ['done'] },
      /found "done", allowed are started/,
    ],
  ])('%s is refused', async (_what, webhook, message) => {
    const problem = await expectProblem(
      await submit(api, { prompt: 'a', webhook }),
      400,
      'validation_failed',
    );
    expect(problem.detail).toMatch(message);
  });

  test('the query of the URL is sent and not shown', async () => {
    worker = startInstantWorker(api);
    const job = await submitted({ url: `${receiver.url}/hook?token=secret#x`, events: EVERY });
    expect(job.webhook!.url).toBe(`${receiver.url}/hook`);
    const [{ path, body }] = (await receiver.until(1)) as [(typeof receiver.received)[0]];
    expect(path).toBe('/hook?token=secret');
    expect(body).not.toContain('token=secret');
    expect(JSON.stringify(await deliveriesOf(job.id))).not.toContain('token=secret');
  });

  test('a URL of any letters is sent as the parser writes it, and keeps no job from ending', async () => {
    worker = startInstantWorker(api);
    const job = await submitted({ url: `${receiver.url}/\u00fc\ud800"?q=\udc00 x` });
    expect(job.webhook!.url).toBe(`${receiver.url}/%C3%BC%EF%BF%BD%22`);
    const [{ path }] = (await receiver.until(1)) as [(typeof receiver.received)[0]];
    expect(path).toBe('/%C3%BC%EF%BF%BD%22?q=%EF%BF%BD%20x');
    await settled(job.id, 'delivered', 1);
  });

  test('a webhook that Lua cannot read keeps no job from ending', async () => {
    const { id } = await submitted();
    // Half of a surrogate pair, which JSON of JavaScript takes and that of Lua does not.
    const webhook = '{"url":"https://example.com/\\ud800","events":["canceled"]}';
    await api.client.hset(`{atelier}:tenant:default:job:${id}`, 'webhook', webhook);
    const job = await expectJson(await post(`/v1/generations/${id}/cancel`), 200, GenerationJob);
    expect(job.status).toBe('canceled');
    expect(await deliveriesOf(id)).toEqual([]);
  });

  test('deliveries of other jobs, and those that are not there, do not exist', async () => {
    const { id } = await submitted();
    const other = await submitted();
    const redeliver = (delivery: string) => post(`/v1/generations/${id}/deliveries/${delivery}/redeliver`);
    await expectProblem(await redeliver(`${id}_succeeded`), 404, 'not_found');
    await expectProblem(await redeliver(`${other.id}_succeeded`), 404, 'not_found');
    await expectProblem(await redeliver('..'), 404, 'not_found');
    const none = await get('/v1/generations/gen_00000000000000000000000000000000/deliveries');
    await expectProblem(none, 404, 'not_found');
    expect((await api.jobs.get({ tenant: DEFAULT_TENANT, id }))!.status).toBe('queued');
  });
});
