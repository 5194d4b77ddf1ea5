import { createHash } from 'node:crypto';
import {
  DatasetStore,
  TrainingJob,
  TrainingList,
  TrainingMetrics,
  newAttemptToken,
  trainingMetricsKey,
} from '@atelier/shared';
import {
  type TestApi,
  expectJson,
  expectNothingAccepted,
  expectProblem,
  startTestApi,
} from '../support/api.ts';

const T = 'default';

let api: TestApi;
beforeEach(async () => {
  api = await startTestApi();
});
afterEach(() => api.close());

const post = (path: string, body: unknown = {}) =>
  fetch(api.url + path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
const get = (path: string) => fetch(api.url + path);

/** @returns the id of a dataset with one prompt, which the API does not look into */
async function storeDataset(): Promise<string> {
  const bytes = Buffer.from('a heron');
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  const entry = (path: string) => ({
    file: { path, size: bytes.length, sha256 },
    contentType: 'application/octet-stream',
    read: async () => bytes,
  });
  const files = [entry('images/001.png'), entry('prompts/001.txt')];
  return (await new DatasetStore(api.store).add(T, { name: 'ink', warnings: [], files })).id;
}

test('a training is accepted with the recipe filled in, listed, canceled', async () => {
  const dataset = await storeDataset();
  const response = await post('/v1/trainings', { name: 'ink', dataset, metadata: { by: 'me' } });
  const job = await expectJson(response, 202, TrainingJob);
  expect(response.headers.get('location')).toBe(`/v1/trainings/${job.id}`);
  expect(job).toMatchObject({
    status: 'queued',
    queue: { position: 0 },
    metadata: { by: 'me' },
    output: null,
  });
  expect(job.input).toMatchObject({
    name: 'ink',
    dataset,
    model: 'mini',
    resolution: 128,
    lora_rank: 4,
    lora_alpha: 8,
    learning_rate: 1e-4,
    batch_size: 4,
    gradient_accumulation_steps: 4,
    max_epochs: 100,
    save_every_n_epochs: 10,
    targets: 'attention',
  });
  expect(await api.queues.queueCounts('training')).toMatchObject({ waiting: 1 });
  expect(await api.queues.queueCounts('generation')).toMatchObject({ waiting: 0 });
  expect(await expectJson(await get(`/v1/trainings/${job.id}`), 200, TrainingJob)).toEqual(job);
  const list = await expectJson(await get('/v1/trainings?status=queued'), 200, TrainingList);
  expect(list).toEqual({ data: [job], next_cursor: null });

  const canceled = await expectJson(await post(`/v1/trainings/${job.id}/cancel`), 200, TrainingJob);
  expect(canceled.status).toBe('canceled');
  expect(await api.queues.queueCounts('training')).toMatchObject({ waiting: 0 });
});

test('events and metrics of a training, to its end', async () => {
  const dataset = await storeDataset();
  const body = { name: 'ink', dataset };
  const { id } = await expectJson(await post('/v1/trainings', body), 202, TrainingJob);
  expect(await expectJson(await get(`/v1/trainings/${id}/metrics`), 200, TrainingMetrics)).toMatchObject({
    steps: [],
  });
  const events = get(`/v1/trainings/${id}/events`).then((response) => response.text());

  const attempt = { tenant: T, id, token: newAttemptToken() };
  await api.jobs.start(attempt, 'trainer-1');
  await api.jobs.progress(attempt, { step: 2, steps: 4, fraction: 0.5, eta_s: 1 });
  const measured: TrainingMetrics = {
    steps: [{ step: 1, epoch: 1, loss: 0.5, learning_rate: 1e-4, gradient_norm: 1 }],
    validation: [{ epoch: 0, loss: 0.6 }],
    checkpoints: [{ epoch: 1, step: 1, lora: 'ink@1' }],
    samples: [],
    skipped: [],
  };
  const key = trainingMetricsKey(attempt);
  await api.store.put(key, Buffer.from(JSON.stringify(measured)), { contentType: 'application/json' });
  await api.jobs.publishLora(attempt, 'ink@1');

  const done = await expectJson(await get(`/v1/trainings/${id}`), 200, TrainingJob);
  expect(done).toMatchObject({
    status: 'succeeded',
    output: { lora: 'ink@1' },
    progress: { step: 4, steps: 4, fraction: 1 },
  });
  expect(await expectJson(await get(`/v1/trainings/${id}/metrics`), 200, TrainingMetrics)).toEqual(measured);
  expect(await events).toContain(`"status":"succeeded"`);
  await expectProblem(await post(`/v1/trainings/${id}/cancel`), 409, 'conflict');
});

test.each([
  ['a misspelt field', { lora_rnak: 8 }, 'lora_rnak: unknown field; did you mean lora_rank?'],
  ['a name that is none', { name: 'Ink Wash' }, 'name: found "Ink Wash"'],
  ['no rank', { lora_rank: 0 }, 'lora_rank: found 0, allowed are whole numbers from 1 to 256'],
  ['targets that are none', { targets: 'mlp' }, 'targets: found "mlp", allowed are'],
  ['a dataset that is none', { dataset: `dst_${'0'.repeat(32)}` }, 'dataset: found dst_0000'],
])('%s is refused, and nothing is queued', async (_name, wrong, detail) => {
  const dataset = `dst_${'1'.repeat(32)}`;
  const response = await post('/v1/trainings', { name: 'ink', dataset, ...wrong });
  expect((await expectProblem(response, 400, 'validation_failed')).detail).toContain(detail);
  await expectNothingAccepted(api);
  expect(await api.queues.queueCounts('training')).toMatchObject({ waiting: 0 });
});

test('a generation is no training, and the other way round', async () => {
  const dataset = await storeDataset();
  const { id } = await expectJson(await post('/v1/trainings', { name: 'ink', dataset }), 202, TrainingJob);
  await expectProblem(await get(`/v1/generations/${id}`), 404, 'not_found');
  await expectProblem(await get(`/v1/trainings/${id.replace('trn', 'gen')}`), 404, 'not_found');
});
