import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type NewApiKey, SCOPES, type Scope } from '@atelier/shared';
import { openApiDocument } from '../../apps/api/src/openapi/document.ts';
import { type TestApi, expectProblem, startTestApi } from '../support/api.ts';
import { bearer, makeKey } from '../support/keys.ts';
import { writeSmallLora } from '../support/lora-files.ts';
import { type TenantObjects, UNKNOWN, makeTenantObjects, pathOf } from '../support/tenant-objects.ts';

interface Route {
  method: string;
  path: string;
  /** null for a route that asks for no key. */
  scope: Scope | null;
  body: unknown;
}

const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const;

/** Every operation of the document: a new one is tested without a line here, or fails for want of an object. */
const ROUTES: Route[] = Object.entries(openApiDocument().paths ?? {}).flatMap(([path, item]) =>
  METHODS.flatMap((method) => {
    const operation = item[method];
    if (!operation) return [];
    const scope = (operation.security?.[0]?.['key']?.[0] ?? null) as Scope | null;
    const content = (operation.requestBody as { content?: Record<string, { example?: unknown }> } | undefined)
      ?.content;
    return [{ method: method.toUpperCase(), path, scope, body: content?.['application/json']?.example }];
  }),
);
const CLOSED = ROUTES.filter(({ scope }) => scope !== null);
const title = ({ method, path }: Route): string => `${method} ${path}`;

/** Without a key: what tools read, and what has a token of its own instead. */
const PUBLIC = [
  'GET /healthz',
  'GET /metrics',
  'GET /openapi.json',
  'GET /problems/{code}',
  'GET /readyz',
  'PUT /v1/datasets/uploads/{id}',
];
/** No objects of a tenant: keys are the operator's, and a name that is free for a tenant is one to import under. */
const NOT_OF_A_TENANT = ['DELETE /v1/keys/{id}', 'PUT /v1/loras/{name}'];
const OF_A_TENANT = CLOSED.filter(
  (route) => route.path.includes('{') && !NOT_OF_A_TENANT.includes(title(route)),
);

/** What changes objects comes after what reads them. */
const rank = ({ method }: Route): number => ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'].indexOf(method);

let api: TestApi;
let owner: NewApiKey;
let stranger: NewApiKey;
let objects: TenantObjects;
const without = new Map<Scope, NewApiKey>();
beforeAll(async () => {
  api = await startTestApi({ ATELIER_API_KEYS: 'an-operators-key-of-the-test' });
  owner = await makeKey(api, 'owner');
  // Whatever a key may do, it does in its tenant.
  stranger = await makeKey(api, 'stranger', [...SCOPES]);
  for (const scope of SCOPES)
    without.set(
      scope,
      await makeKey(
        api,
        'owner',
        SCOPES.filter((s) => s !== scope && s !== 'admin'),
      ),
    );
  objects = await makeTenantObjects(api, owner);
});
afterAll(() => api.close());

const call = ({ method, body }: Route, path: string, headers: Record<string, string> = {}) =>
  fetch(api.url + path, {
    method,
    headers: { ...(body === undefined ? {} : { 'Content-Type': 'application/json' }), ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
const lax = (template: string) => template.replaceAll(/[{}]/g, '');

test('what is below /v1 asks for a key, but for what is named here', () => {
  expect(
    ROUTES.filter(({ scope }) => scope === null)
      .map(title)
      .sort(),
  ).toEqual(PUBLIC);
  expect(CLOSED.length).toBeGreaterThan(25);
});

test.each(CLOSED)('$method $path without a key, or with one of nobody, is 401', async (route) => {
  for (const headers of [
    {},
    bearer(`atl_${'a'.repeat(8)}_${'A'.repeat(40)}`),
    bearer(owner.key.slice(0, -1)),
  ]) {
    const response = await call(route, lax(route.path), headers);
    expect(response.headers.get('www-authenticate')).toBe('Bearer');
    await expectProblem(response, 401, 'unauthorized');
  }
});

test.each(CLOSED)('$method $path with every scope but $scope is 403 and names it', async (route) => {
  const response = await call(route, lax(route.path), bearer(without.get(route.scope!)!.key));
  expect(response.headers.get('www-authenticate')).toBe(
    `Bearer error="insufficient_scope", scope="${route.scope}"`,
  );
  const { detail } = await expectProblem(response, 403, 'forbidden');
  expect(detail).toMatch(new RegExp(`needs ${route.scope}$`));
});

describe('objects of another tenant do not exist', () => {
  test.each(OF_A_TENANT)('$method $path is 404, as for an unknown id', async (route) => {
    const path = pathOf(route.path, objects);
    const theirs = await expectProblem(await call(route, path, bearer(stranger.key)), 404, 'not_found');
    const nowhere = pathOf(route.path, UNKNOWN);
    const unknown = await expectProblem(await call(route, nowhere, bearer(stranger.key)), 404, 'not_found');
    expect(anonymous(theirs, objects)).toEqual(anonymous(unknown, UNKNOWN));
  });

  const lists = CLOSED.filter(
    ({ method, path, scope }) => method === 'GET' && !path.includes('{') && scope !== 'admin',
  );
  test.each(lists)('GET $path of a stranger has none of them', async ({ path }) => {
    const key = await makeKey(api, 'stranger');
    const text = await (await fetch(api.url + path, { headers: bearer(key.key) })).text();
    for (const value of ids(objects)) expect(text).not.toContain(value);
  });

  test('lists of their tenant have them: the test above would see them', async () => {
    const texts = await Promise.all(
      lists.map(async ({ path }) => (await fetch(api.url + path, { headers: bearer(owner.key) })).text()),
    );
    for (const id of ids(objects).filter((value) => !value.startsWith('upl_')))
      expect(texts.some((text) => text.includes(id))).toBe(true);
  });

  test('a stranger can neither draw with their LoRAs nor train on their datasets', async () => {
    const post = (path: string, body: object) =>
      fetch(api.url + path, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json', ...bearer(stranger.key) },
        body: JSON.stringify(body),
      });
    const styles = [{ lora: objects.loras.name }];
    const style = await post('/v1/generations', { prompt: 'a', styles });
    expect((await expectProblem(style, 422, 'unknown_lora')).detail).not.toContain('did you mean');
    const training = await post('/v1/trainings', { name: 'x', dataset: objects.datasets.id });
    await expectProblem(training, 400, 'validation_failed');
  });

  test('the token of an upload opens that of its tenant alone', async () => {
    const announce = await fetch(`${api.url}/v1/datasets/uploads`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...bearer(stranger.key) },
      body: JSON.stringify({ name: 'x', size: 10 }),
    });
    const { headers } = (await announce.json()) as { headers: Record<string, string> };
    const token = headers['X-Upload-Token']!;
    const send = (value: string) =>
      fetch(`${api.url}/v1/datasets/uploads/${objects.uploads.id}`, {
        method: 'PUT',
        headers: { ...headers, 'X-Upload-Token': value },
        body: 'x'.repeat(10),
      });
    await expectProblem(await send(token), 404, 'not_found');
    await expectProblem(await send(token.replace('stranger.', 'owner.')), 401, 'unauthorized');
    await expectProblem(await send(token.replace('stranger.', '../owner.')), 401, 'unauthorized');
  });

  test('the same name of a LoRA is another LoRA', async () => {
    const file = await readFile(await writeSmallLora(join(api.storeDir, '..', 'b.safetensors'), { seed: 9 }));
    const path = `${api.url}/v1/loras/${objects.loras.name}`;
    const put = await fetch(path, {
      method: 'PUT',
      body: new Uint8Array(file),
      headers: bearer(stranger.key),
    });
    expect(await put.json()).toMatchObject({ version: 1 });
    expect((await fetch(path, { method: 'DELETE', headers: bearer(stranger.key) })).status).toBe(204);
    expect(await (await fetch(path, { headers: bearer(owner.key) })).json()).toMatchObject({ versions: [1] });
  });

  test('a worker shows the job in hand to its tenant and to operators', async () => {
    await api.client.set(
      '{atelier}:worker:w',
      JSON.stringify({ id: 'w', kind: 'generation', models: [], current_job: objects.generations.id }),
    );
    await api.client.zadd('{atelier}:workers', Date.now() + 60_000, 'w');
    const seen = async (key: string) => {
      const response = await fetch(`${api.url}/v1/workers`, { headers: bearer(key) });
      return ((await response.json()) as { data: { current_job: string }[] }).data[0]!.current_job;
    };
    expect(await seen(owner.key)).toBe(objects.generations.id);
    expect(await seen(stranger.key)).toBe(objects.generations.id);
    expect(await seen((await makeKey(api, 'stranger')).key)).toBeNull();
    await api.client.zrem('{atelier}:workers', 'w');
  });

  // Last: these change and delete the objects. That each answers shows that each was there all along.
  test.each([...OF_A_TENANT].sort((a, b) => rank(a) - rank(b)))(
    '$method $path answers the tenant',
    async (route) => {
      const response = await call(route, pathOf(route.path, objects), bearer(owner.key));
      await response.body?.cancel();
      expect([200, 201, 202, 204, 409]).toContain(response.status);
    },
  );
});

const ids = ({ generations, loras, datasets, uploads, trainings }: TenantObjects): string[] => [
  generations.id,
  loras.name,
  datasets.id,
  uploads.id,
  trainings.id,
];

/** A problem without what names the object and the request. */
function anonymous(problem: object, of: TenantObjects): string {
  const text = JSON.stringify({ ...problem, request_id: '' });
  const names = [...ids(of), of.generations.delivery, of.trainings.delivery];
  return names.reduce((rest, id) => rest.replaceAll(id, 'ID'), text);
}
