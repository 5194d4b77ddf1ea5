import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import { join } from 'node:path';
import { GenerationJob, ProblemPage, ReadinessView } from '@atelier/shared';
import { createApp } from '../../apps/api/src/app.ts';
import { openApiDocument } from '../../apps/api/src/openapi/document.ts';
import { Submissions } from '../../apps/api/src/submission.ts';
import {
  type TestApi,
  expectJson,
  expectNothingAccepted,
  expectProblem,
  startTestApi,
  submit,
} from '../support/api.ts';
import { startInstantWorker } from '../support/instant-worker.ts';

const PROJECT = join(import.meta.dirname, '../..');
const KEYS = ['first-key-of-the-test', 'second-key-of-the-test'];

let api: TestApi;
afterEach(() => api?.close());

const get = (path: string, headers: Record<string, string> = {}) => fetch(api.url + path, { headers });

test('health, readiness and metrics answer', async () => {
  api = await startTestApi();
  await submit(api, { prompt: 'a' });
  expect(await (await get('/healthz')).json()).toEqual({ status: 'ok' });
  const readiness = await expectJson(await get('/readyz'), 200, ReadinessView);
  expect(readiness).toEqual({ ready: true, checks: { redis: { ok: true }, store: { ok: true } } });
  await get('/v1/generations/gen_00000000000000000000000000000000');
  const metrics = await (await get('/metrics')).text();
  expect(metrics).toContain('atelier_queue_jobs{queue="generation",state="waiting"} 1');
  expect(metrics).toContain('_count{method="POST",route="/v1/generations",status="202"} 1');
  expect(metrics).toContain('_count{method="GET",route="/v1/generations/:id",status="404"} 1');
});

test('every answer carries the request id, the client’s own when it can be logged', async () => {
  api = await startTestApi();
  expect((await get('/healthz', { 'X-Request-Id': 'order-7' })).headers.get('x-request-id')).toBe('order-7');
  const made = (await get('/healthz', { 'X-Request-Id': 'a b"c' })).headers.get('x-request-id');
  expect(made).toMatch(/^[0-9a-f-]{36}$/);
  const problem = await expectProblem(await get('/nowhere', { 'X-Request-Id': 'order-8' }), 404, 'not_found');
  expect(problem).toMatchObject({ request_id: 'order-8', instance: '/nowhere' });
});

test('the type of a problem leads to its page', async () => {
  api = await startTestApi();
  const { type } = await expectProblem(await get('/nowhere'), 404, 'not_found');
  const page = await expectJson(await get(type), 200, ProblemPage);
  expect(page).toMatchObject({ code: 'not_found', status: 404, retryable: false });
});

test('the OpenAPI document describes every route, each with its errors', async () => {
  api = await startTestApi();
  const served = (await (await get('/openapi.json')).json()) as OpenApi;
  expect(served).toEqual(JSON.parse(JSON.stringify(openApiDocument())));
  expect(served.openapi).toBe('3.1.0');

  const operations = Object.entries(served.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method, operation })),
  );
  expect(new Set(operations.map(({ operation }) => operation.operationId)).size).toBe(operations.length);
  for (const { path, method, operation } of operations) {
    // A documented operation exists: OPTIONS tells the methods of the path.
    const allow = (await fetch(api.url + path.replaceAll(/[{}]/g, ''), { method: 'OPTIONS' })).headers.get(
      'allow',
    );
    expect(allow?.split(', ')).toContain(method.toUpperCase());
    for (const [status, response] of Object.entries(operation.responses)) {
      expect(response.description).not.toBe('');
      expect(response.headers).toHaveProperty('X-Request-Id');
      if (Number(status) >= 400 && path !== '/readyz') {
        expect(Object.keys(response.content ?? {})).toEqual(['application/problem+json']);
      }
    }
  }
  for (const ref of JSON.stringify(served).match(/"\$ref":"[^"]+"/g) ?? []) {
    const name = /#\/components\/schemas\/(\w+)/.exec(ref)?.[1];
    expect(served.components.schemas).toHaveProperty(name!);
  }
  const submitted = served.paths['/v1/generations']!['post']!;
  expect(Object.keys(submitted.responses).sort()).toEqual(
    '200 202 400 401 403 413 415 421 422 500 503'.split(' '),
  );
  expect(submitted.responses['202']?.headers).toHaveProperty('Location');
  GenerationJob.parse(submitted.responses['200']?.content?.['application/json']?.example);

  // And nothing exists that is not documented, but the pages for people.
  const { router } = createApp(
    { ...api.deps, shutdown: new AbortController().signal },
    new Submissions(api.deps),
  );
  const routes = router.stack.flatMap(({ route }) =>
    route ? [route.path.replaceAll(/:(\w+)/g, '{$1}')] : [],
  );
  expect(routes.filter((path) => path !== '/' && !path.startsWith('/docs')).sort()).toEqual(
    Object.keys(served.paths).sort(),
  );
});

interface OpenApi {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, object> };
}
interface Operation {
  operationId: string;
  responses: Record<
    string,
    { description: string; headers: object; content?: Record<string, { example?: unknown }> }
  >;
}

test('the first page shows how to start and the latest pictures, and cannot be made to run a prompt', async () => {
  api = await startTestApi();
  const worker = startInstantWorker(api);
  try {
    const response = await submit(api, { prompt: '<script>alert(1)</script>' }, { Prefer: 'wait=30' });
    const job = await expectJson(response, 200, GenerationJob);
    const page = await get('/');
    const html = await page.text();
    expect(page.headers.get('content-type')).toMatch(/^text\/html/);
    expect(page.headers.get('content-security-policy')).toContain("default-src 'none'");
    expect(html).toContain(`curl -sS ${api.url}/v1/generations`);
    expect(html).toContain(`<img src="/v1/generations/${job.id}/images/0"`);
    expect(html).toContain('&lt;script&gt;alert(1)&lt;/script&gt;');
    expect(html).not.toContain('<script');
  } finally {
    await worker.close();
  }
});

describe('with API keys', () => {
  beforeEach(async () => {
    api = await startTestApi({ ATELIER_API_KEYS: KEYS.join(', ') });
  });

  test.each([
    [{}],
    [{ Authorization: 'Bearer wrong-key-of-the-test' }],
    [{ Authorization: `Basic ${KEYS[0]}` }],
    [{ Authorization: `Bearer ${KEYS[0]}x` }],
  ])('%j is refused on every route of the API, and nothing is queued', async (headers) => {
    for (const [method, path] of [
      ['GET', '/v1/generations'],
      ['GET', '/v1/models'],
      ['GET', '/v1/loras'],
      ['PUT', '/v1/loras/ink'],
      ['DELETE', '/v1/loras/ink'],
      ['GET', '/v1/loras/ink/file'],
      ['GET', '/v1/datasets'],
      ['POST', '/v1/datasets'],
      ['DELETE', '/v1/datasets/dst_00000000000000000000000000000000'],
      ['POST', '/v1/datasets/uploads'],
      ['PUT', '/v1/datasets/uploads/upl_00000000000000000000000000000000'],
      ['POST', '/v1/datasets/uploads/upl_00000000000000000000000000000000/complete'],
      ['GET', '/v1/queue'],
      ['GET', '/v1/workers'],
      ['POST', '/v1/generations'],
      ['POST', '/v1/trainings'],
      ['GET', '/v1/trainings/trn_00000000000000000000000000000000/metrics'],
      ['GET', '/v1/trainings/trn_00000000000000000000000000000000/checkpoints'],
      ['GET', '/v1/trainings/trn_00000000000000000000000000000000/samples/0/0'],
      ['POST', '/v1/generations/gen_00000000000000000000000000000000/cancel'],
      ['GET', '/v1/generations/gen_00000000000000000000000000000000/images/0'],
      ['GET', '/v1/nowhere'],
    ] as const) {
      const response = await fetch(api.url + path, {
        method,
        headers: { ...headers, 'Content-Type': 'application/json' },
        ...(method === 'POST' ? { body: '{"prompt":"a"}' } : {}),
      });
      expect(response.headers.get('www-authenticate')).toBe('Bearer');
      await expectProblem(response, 401, 'unauthorized');
    }
    await expectNothingAccepted(api);
  });

  test('each key opens the API; probes and the document need none', async () => {
    for (const key of KEYS) {
      const response = await submit(api, { prompt: 'a' }, { Authorization: `Bearer ${key}` });
      expect(response.status).toBe(202);
    }
    for (const path of ['/healthz', '/readyz', '/metrics', '/openapi.json', '/'])
      expect((await get(path)).status).toBe(200);
  });
});

test('without keys only names of this machine are answered: a web page cannot point its own name here', async () => {
  api = await startTestApi({ ATELIER_PUBLIC_URL: 'https://studio.example.com' });
  const answer = async (host: string, path: string) => {
    const request = http.get(api.url + path, { headers: { Host: host } });
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    response.resume();
    return response.statusCode;
  };
  for (const host of ['localhost:6006', '127.0.0.1', '[::1]:6006', 'studio.example.com']) {
    expect(await answer(host, '/v1/generations')).toBe(200);
  }
  for (const host of [
    'evil.example.com:6006',
    'localhost.evil.example.com',
    '127.0.0.1.evil.example.com',
    '10.0.0.1',
  ]) {
    expect(await answer(host, '/v1/generations')).toBe(421);
    expect(await answer(host, '/')).toBe(421);
  }
});

test('ATELIER_PUBLIC_URL is what image URLs start with', async () => {
  api = await startTestApi({ ATELIER_PUBLIC_URL: 'https://studio.example.com/' });
  const worker = startInstantWorker(api);
  try {
    const job = await expectJson(
      await submit(api, { prompt: 'a' }, { Prefer: 'wait=30' }),
      200,
      GenerationJob,
    );
    expect(job.output?.images[0]?.url).toBe(`https://studio.example.com/v1/generations/${job.id}/images/0`);
  } finally {
    await worker.close();
  }
});

describe('the process', () => {
  let child: ChildProcess | null = null;
  afterEach(() => void child?.kill('SIGKILL'));

  function start(env: Record<string, string>): { output: () => string; exit: Promise<unknown[]> } {
    let text = '';
    child = spawn(process.execPath, ['apps/api/src/main.ts'], {
      cwd: PROJECT,
      env: {
        PATH: process.env['PATH'],
        ATELIER_DATA_DIR: join(api.storeDir, '..'),
        REDIS_URL: api.redis.url,
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    child.stdout!.on('data', (chunk) => (text += chunk));
    child.stderr!.on('data', (chunk) => (text += chunk));
    return { output: () => text, exit: once(child, 'exit') };
  }

  test('does not start open to the network without keys', async () => {
    api = await startTestApi();
    const { exit, output } = start({ ATELIER_HOST: '0.0.0.0', ATELIER_PORT: '0' });
    expect((await exit)[0]).toBe(1);
    expect(output()).toContain(
      'ATELIER_HOST=0.0.0.0 is open to the network, and ATELIER_API_KEYS is not set',
    );
  });

  test('says which port is taken', async () => {
    api = await startTestApi();
    const { exit, output } = start({ ATELIER_PORT: new URL(api.url).port });
    expect((await exit)[0]).toBe(1);
    expect(output()).toContain('EADDRINUSE');
  });

  test('answers what is in flight at SIGTERM, then ends with 0', async () => {
    api = await startTestApi();
    const { exit, output } = start({ ATELIER_PORT: '0', LOG_LEVEL: 'info' });
    let url: string | undefined;
    while (!url) {
      await new Promise((resolve) => setTimeout(resolve, 20));
      url = /"url":"(http[^"]+)"/.exec(output())?.[1];
    }
    while (!(await fetch(`${url}/readyz`)).ok) await new Promise((resolve) => setTimeout(resolve, 20));
    const waiting = submit({ ...api, url }, { prompt: 'a' }, { Prefer: 'wait=60' });
    while ((await api.queues.queueCounts()).waiting === 0)
      await new Promise((resolve) => setTimeout(resolve, 20));
    child!.kill('SIGTERM');
    const job = await expectJson(await waiting, 202, GenerationJob);
    expect(await exit).toEqual([0, null]);
    // The line of the request carries the id of its job.
    const line = output()
      .split('\n')
      .find((text) => text.includes('POST /v1/generations 202'));
    expect(JSON.parse(line!)).toMatchObject({ service: 'api', tenant: 'default', job_id: job.id });
  });
});

test('the docs page loads nothing from elsewhere', async () => {
  api = await startTestApi();
  const response = await get('/docs');
  expect(response.headers.get('content-security-policy')).toContain("script-src 'self'");
  const page = await response.text();
  const assets = [...page.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1]!);
  expect(assets.length).toBe(3);
  for (const asset of assets) {
    expect(asset).toMatch(/^\/docs\//);
    const served = await get(asset);
    expect({ asset, status: served.status }).toEqual({ asset, status: 200 });
    await served.arrayBuffer();
  }
});
