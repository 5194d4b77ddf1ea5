import { createHash } from 'node:crypto';
import {
  DatasetStore,
  TrainingCheckpointList,
  TrainingJob,
  TrainingList,
  TrainingMetrics,
  newAttemptToken,
  trainingMetricsKey,
  trainingSampleKey,
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
  ['an empty sample prompt', { sample_prompts: ['a heron', ''] }, 'sample_prompts[1]'],
  ['nine sample prompts', { sample_prompts: Array<string>(9).fill('a') }, 'sample_prompts: found'],
  ['half a character', { sample_prompts: ['\ud800'] }, 'surrogate'],
  ['a gamma of 0', { min_snr_gamma: 0 }, 'min_snr_gamma: found 0'],
  [
    'a seed whose samples leave the integers',
    { seed: Number.MAX_SAFE_INTEGER },
    'seed: found 9007199254740991',
  ],
  ['a dataset that is none', { dataset: `dst_${'0'.repeat(32)}` }, 'dataset: found dst_0000'],
])('%s is refused, and nothing is queued', async (_name, wrong, detail) => {
  const dataset = `dst_${'1'.repeat(32)}`;
  const response = await post('/v1/trainings', { name: 'ink', dataset, ...wrong });
  expect((await expectProblem(response, 400, 'validation_failed')).detail).toContain(detail);
  await expectNothingAccepted(api);
  expect(await api.queues.queueCounts('training')).toMatchObject({ waiting: 0 });
});

describe('samples', () => {
  const bytes = [Buffer.from('one PNG'), Buffer.from('another'), Buffer.from('a third')];
  const sample = (step: number, index: number) => ({
    epoch: step / 3,
    step,
    index,
    prompt: `prompt ${index}`,
    seed: 42 + index,
    width: 64,
    height: 64,
    sha256: createHash('sha256').update(bytes[index]!).digest('hex'),
  });

  /** @returns the id of a training that has published two versions, the second without samples as yet */
  async function measuredTraining(): Promise<string> {
    const body = { name: 'ink', dataset: await storeDataset(), sample_prompts: ['prompt 0', 'prompt 1'] };
    const { id, input } = await expectJson(await post('/v1/trainings', body), 202, TrainingJob);
    expect(input.sample_prompts).toEqual(body.sample_prompts);
    const ref = { tenant: T, id };
    const samples = [sample(0, 0), sample(0, 1), sample(3, 0), sample(3, 1)];
    for (const { step, index } of samples)
      await api.store.put(trainingSampleKey(ref, step, index), bytes[index]!, { contentType: 'image/png' });
    const metrics: TrainingMetrics = {
      steps: [],
      validation: [
        { epoch: 0, loss: 0.6 },
        { epoch: 1, loss: 0.5 },
      ],
      checkpoints: [
        { epoch: 1, step: 3, lora: 'ink@1' },
        { epoch: 2, step: 6, lora: 'ink@2' },
      ],
      samples,
      skipped: [],
    };
    const file = Buffer.from(JSON.stringify(metrics));
    await api.store.put(trainingMetricsKey(ref), file, { contentType: 'application/json' });
    return id;
  }

  test('checkpoints are listed with their pictures, which can be downloaded and kept', async () => {
    const id = await measuredTraining();
    const url = `/v1/trainings/${id}/checkpoints`;
    const { data } = await expectJson(await get(url), 200, TrainingCheckpointList);
    expect(data.map(({ step, epoch, lora, validation_loss: loss }) => [step, epoch, lora, loss])).toEqual([
      [0, 0, null, 0.6],
      [3, 1, 'ink@1', 0.5],
      [6, 2, 'ink@2', null],
    ]);
    expect(data.map(({ samples }) => samples.length)).toEqual([2, 2, 0]);
    const [, picture] = data[1]!.samples;
    expect(picture).toEqual({
      prompt: 'prompt 1',
      seed: 43,
      width: 64,
      height: 64,
      sha256: sample(3, 1).sha256,
      url: `${api.url}/v1/trainings/${id}/samples/3/1`,
    });

    const response = await fetch(picture!.url);
    expect(response.status).toBe(200);
    expect(response.headers.get('content-type')).toBe('image/png');
    expect(response.headers.get('cache-control')).toContain('immutable');
    expect(Buffer.from(await response.arrayBuffer())).toEqual(bytes[1]);
    const known = { 'If-None-Match': response.headers.get('etag')! };
    expect((await fetch(picture!.url, { headers: known })).status).toBe(304);
  });

  test.each(['3/2', '6/0', '4/0', '03/0', '3/..%2f0', '-1/0'])('there is no %s', async (path) => {
    const id = await measuredTraining();
    const problem = await expectProblem(await get(`/v1/trainings/${id}/samples/${path}`), 404, 'not_found');
    expect(problem.detail).toContain('has samples of the steps 0, 3');
  });

  test('a training that has not started has none; a file of before samples lists none', async () => {
    const body = { name: 'ink', dataset: await storeDataset() };
    const { id } = await expectJson(await post('/v1/trainings', body), 202, TrainingJob);
    const list = () => get(`/v1/trainings/${id}/checkpoints`);
    expect(await expectJson(await list(), 200, TrainingCheckpointList)).toEqual({ data: [] });
    await expectProblem(await get(`/v1/trainings/${id}/samples/0/0`), 404, 'not_found');
    const old = {
      steps: [],
      validation: [],
      checkpoints: [{ epoch: 1, step: 3, lora: 'ink@1' }],
      skipped: [],
    };
    const key = trainingMetricsKey({ tenant: T, id });
    await api.store.put(key, Buffer.from(JSON.stringify(old)), { contentType: 'application/json' });
    const { data } = await expectJson(await list(), 200, TrainingCheckpointList);
    expect(data).toEqual([{ epoch: 1, step: 3, lora: 'ink@1', validation_loss: null, samples: [] }]);
  });
});

test('a generation is no training, and the other way round', async () => {
  const dataset = await storeDataset();
  const { id } = await expectJson(await post('/v1/trainings', { name: 'ink', dataset }), 202, TrainingJob);
  await expectProblem(await get(`/v1/generations/${id}`), 404, 'not_found');
  await expectProblem(await get(`/v1/trainings/${id.replace('trn', 'gen')}`), 404, 'not_found');
});
