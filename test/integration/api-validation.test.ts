import { LIMITS } from '@atelier/shared';
import { type TestApi, expectNothingAccepted, expectProblem, startTestApi, submit } from '../support/api.ts';

let api: TestApi;
beforeAll(async () => {
  api = await startTestApi({ ATELIER_MAX_BODY_BYTES: String(200_000) });
});
afterAll(() => api.close());
// Whatever a test sent, it was refused, and that must have left nothing behind.
afterEach(() => expectNothingAccepted(api));

const post = (body: string, type = 'application/json') =>
  fetch(`${api.url}/v1/generations`, { method: 'POST', headers: { 'Content-Type': type }, body });

const valid = { prompt: 'a red apple' };

test.each<[name: string, body: unknown, field: string, message: string]>([
  [
    'an unknown field',
    { ...valid, negative_prompt: 'x' },
    'negative_prompt',
    'unknown field; allowed are prompt, model',
  ],
  [
    'a misspelt field',
    { ...valid, stpes: 5 },
    'stpes',
    'unknown field; did you mean steps? allowed are prompt',
  ],
  ['no prompt', {}, 'prompt', 'found nothing, allowed is text of at most 4096 characters'],
  [
    'a prompt of 100 kB',
    { prompt: 'a'.repeat(100_000) },
    'prompt',
    'found 100000 characters, allowed is text of',
  ],
  ['half a surrogate pair', { prompt: 'a\ud83d' }, 'prompt', 'found half of a surrogate pair'],
  ['steps 0', { ...valid, steps: 0 }, 'steps', 'found 0, allowed are whole numbers from 1 to 50'],
  ['steps 51', { ...valid, steps: 51 }, 'steps', 'found 51, allowed are whole numbers from 1 to 50'],
  ['steps as text', { ...valid, steps: '20' }, 'steps', 'found "20", allowed are whole numbers from 1 to 50'],
  [
    'a width off the grid',
    { ...valid, width: 100 },
    'width',
    'multiples of 16 from 64 to 2048; nearest: 96 and 112',
  ],
  ['a height too large', { ...valid, height: 4096 }, 'height', 'found 4096, allowed are multiples of 16'],
  ['seed 2^53', { ...valid, seed: 2 ** 53 }, 'seed', `from -1 to ${LIMITS.seed.max}`],
  ['seed -2', { ...valid, seed: -2 }, 'seed', 'found -2, allowed are whole numbers from -1'],
  ['seeds past the largest', { ...valid, seed: LIMITS.seed.max, count: 2 }, 'seed', 'when count is 2'],
  ['an unknown format', { ...valid, format: 'gif' }, 'format', 'found "gif", allowed are png, jpeg, webp'],
  [
    'a ninth style',
    { ...valid, styles: Array.from({ length: 9 }, () => ({ lora: 'ink' })) },
    'styles',
    'found a list of length 9, allowed is a list of at most 8 items',
  ],
  ['a list', [valid], '', 'found a list of length 1, allowed is an object with the fields prompt'],
  ['null', null, '', 'found null, allowed is an object'],
])('%s is refused by name', async (_name, body, field, message) => {
  const problem = await expectProblem(await submit(api, body), 400, 'validation_failed');
  const error = problem.errors?.find((entry) => entry.field === field);
  expect(error?.message).toContain(message);
  expect(problem.detail).toContain(message);
});

test('an unknown model is refused with the names of the catalog', async () => {
  const problem = await expectProblem(await submit(api, { ...valid, model: 'flux' }), 422, 'unknown_model');
  expect(problem.detail).toBe('The model "flux" is not in the catalog: mini');
  expect(problem.errors?.[0]?.field).toBe('model');
});

test('a style is refused where there are no LoRAs', async () => {
  const styles = [{ lora: 'ink' }];
  const problem = await expectProblem(await submit(api, { ...valid, styles }), 422, 'unknown_lora');
  expect(problem.detail).toContain('styles[0].lora: found "ink"; there are no LoRAs yet');
});

test.each([
  ['{"prompt": x}', 'at position 11 (line 1 column 12)'],
  ['{"prompt":\n "a",}', 'position 16 (line 2 column 6)'],
  ['{"prompt": "a"', 'at position 14 (line 1 column 15)'],
  ['{"prompt": "a"} {}', 'position 16 (line 1 column 17)'],
])('invalid JSON is refused with the place: %j', async (body, place) => {
  const problem = await expectProblem(await post(body), 400, 'invalid_json');
  expect(problem.detail).toContain(place);
});

test.each(['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x'])(
  'content type %s is refused',
  async (type) => {
    const problem = await expectProblem(await post('{"prompt":"a"}', type), 415, 'unsupported_media_type');
    expect(problem.detail).toContain('allowed is application/json');
  },
);

test('a charset that JSON does not have is refused', async () => {
  await expectProblem(
    await post('{"prompt":"a"}', 'application/json; charset=latin1'),
    415,
    'unsupported_media_type',
  );
});

test('a request without a body is told what the body must be', async () => {
  const response = await fetch(`${api.url}/v1/generations`, { method: 'POST' });
  expect((await expectProblem(response, 400, 'validation_failed')).detail).toContain('body: found nothing');
});

test('a body over the limit is refused with the limit', async () => {
  const problem = await expectProblem(
    await submit(api, { prompt: 'a'.repeat(200_001) }),
    413,
    'payload_too_large',
  );
  expect(problem.detail).toBe('body: allowed are at most 200000 bytes');
});

test.each([
  ['a URL', 'https://example.com/a.png', 'allowed is a data URI'],
  [
    'bytes that are no picture',
    `data:image/png;base64,${'A'.repeat(400)}`,
    'not a PNG, JPEG or WebP picture',
  ],
])('an init image that is %s is refused', async (_name, file, message) => {
  const problem = await expectProblem(await submit(api, { ...valid, image: { file } }), 422, 'image_invalid');
  expect(problem.errors).toEqual([{ field: 'image.file', message: expect.stringContaining(message) }]);
});

test.each([
  ['limit=0', 'limit', 'found "0", allowed are whole numbers from 1 to 100'],
  ['limit=101', 'limit', 'found "101", allowed are whole numbers from 1 to 100'],
  ['status=done', 'status', 'allowed are queued, running, succeeded, failed, canceled'],
  ['cursor=7', 'cursor', 'allowed is next_cursor of the page before'],
  ['page=2', 'page', 'unknown field; allowed are status, limit, cursor'],
])('the query %s is refused', async (query, field, message) => {
  const response = await fetch(`${api.url}/v1/generations?${query}`);
  const problem = await expectProblem(response, 400, 'validation_failed');
  expect(problem.errors).toEqual([{ field, message: expect.stringContaining(message) }]);
});

test.each([
  '/nowhere',
  '/v1/nowhere',
  '/v1/generations/gen_1',
  '/v1/generations/%ff',
  '/problems/constructor',
])('GET %s is 404', async (path) => {
  await expectProblem(await fetch(api.url + path), 404, 'not_found');
});

test.each([
  ['DELETE', '/v1/generations', 'GET, HEAD, OPTIONS, POST'],
  ['PUT', '/v1/models', 'GET, HEAD, OPTIONS'],
  ['DELETE', '/v1/trainings', 'GET, HEAD, OPTIONS, POST'],
])('%s %s is 405 and says what is allowed', async (method, path, allow) => {
  const response = await fetch(api.url + path, { method });
  expect(response.headers.get('allow')).toBe(allow);
  await expectProblem(response, 405, 'method_not_allowed');
});
