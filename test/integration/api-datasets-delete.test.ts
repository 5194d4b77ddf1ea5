import { DatasetStore, type TrainingJob } from '@atelier/shared';
import { type TestApi, expectProblem, startTestApi } from '../support/api.ts';
import { emptyStore, pair, storedKeys, uploaded } from '../support/datasets.ts';
import { until } from '../support/studio.ts';

const T = 'default';

let api: TestApi;
beforeAll(async () => {
  api = await startTestApi();
});
afterAll(() => api.close());
beforeEach(async () => {
  await emptyStore(api);
  for await (const { tenant, id } of api.jobs.open('training')) await api.jobs.requestCancel({ tenant, id });
});

const train = (dataset: string) =>
  fetch(`${api.url}/v1/trainings`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ name: 'ink', dataset }),
  });
const trained = async (dataset: string) => {
  const response = await train(dataset);
  expect(response.status).toBe(202);
  return (await response.json()) as TrainingJob;
};
const remove = (dataset: string) => fetch(`${api.url}/v1/datasets/${dataset}`, { method: 'DELETE' });
const cancel = (id: string) => fetch(`${api.url}/v1/trainings/${id}/cancel`, { method: 'POST' });
const openTrainings = async () => {
  const ids: string[] = [];
  for await (const { id } of api.jobs.open('training')) ids.push(id);
  return ids;
};

test('a dataset stays while a queued or running training uses it, and goes when they have ended', async () => {
  const [used, other] = [await uploaded(api, pair('001')), await uploaded(api, pair('001'))];
  const [queued, running] = [await trained(used.id), await trained(used.id)];
  const attempt = { tenant: T, id: running.id, token: 'attempt' };
  await api.jobs.start(attempt, 'trainer-1');

  const both = await expectProblem(await remove(used.id), 409, 'dataset_in_use');
  expect(both.detail).toBe(
    `${used.id} is used by 2 trainings that have not ended: ${queued.id}, ${running.id}`,
  );
  await cancel(queued.id);
  const one = await expectProblem(await remove(used.id), 409, 'dataset_in_use');
  expect(one.detail).toBe(`${used.id} is used by 1 training that has not ended: ${running.id}`);
  expect(await new DatasetStore(api.store).get(T, used.id)).toEqual(used);

  expect((await remove(other.id)).status).toBe(204);
  await api.jobs.publishLora(attempt, 'ink@1');
  expect((await remove(used.id)).status).toBe(204);
  expect(await storedKeys(api)).toEqual([]);
  await expectProblem(await remove(used.id), 404, 'not_found');
});

test('while a delete is under way no training is accepted, afterwards it is', async () => {
  const { id } = await uploaded(api, pair('001'));
  const held = `{atelier}:tenant:${T}:dataset:${id}:deleting`;
  await api.client.set(held, 'another API', 'PX', 60_000);
  const before = await api.queues.queueCounts('training');
  const refused = await expectProblem(await train(id), 409, 'conflict');
  expect(refused.detail).toBe(`dataset: ${id} is being deleted`);
  expect(await api.queues.queueCounts('training')).toEqual(before);
  await until(async () => (await openTrainings()).length === 0);

  const second = remove(id);
  await api.client.del(held);
  expect((await second).status).toBe(204);
  await expectProblem(await train(id), 400, 'validation_failed');
});

test('of a delete and a submission at once never both win: what is accepted has its dataset', async () => {
  const datasets = new DatasetStore(api.store);
  for (let i = 0; i < 40; i++) {
    const { id } = await uploaded(api, pair('001'));
    const [deleted, submitted] = await Promise.all([remove(id), train(id)]);
    const outcome = `${deleted.status} ${submitted.status}`;
    expect(['204 400', '204 409', '409 202', '409 409']).toContain(outcome);
    expect((await datasets.get(T, id)) === null).toBe(deleted.status === 204);
    if (submitted.status === 202) await cancel(((await submitted.json()) as TrainingJob).id);
  }
  await until(async () => (await openTrainings()).length === 0);
});
