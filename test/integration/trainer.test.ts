import { createLogger, createRedis, listWorkers } from '@atelier/shared';
import { startTrainer } from '../../apps/trainer/src/trainer.ts';
import { type TestStudio, startTestStudio, until } from '../support/studio.ts';

let studio: TestStudio;
beforeAll(async () => {
  studio = await startTestStudio();
});
afterAll(() => studio.stop());

test('a training ends at once with a clear error, and the trainer is listed while it lives', async () => {
  const { config, jobs, queues } = studio;
  const redis = createRedis(config, 'worker');
  const trainer = await startTrainer({ config, redis, log: createLogger(config, 'trainer') });
  const job = await jobs.create({ kind: 'training', input: {} });
  await queues.enqueueTraining(job);
  expect(await jobs.wait(job, 10_000)).toMatchObject({
    status: 'failed',
    attempts: 1,
    error: { code: 'training_unavailable', retryable: false },
  });
  await until(async () => (await listWorkers(redis)).length === 1);
  expect(await listWorkers(redis)).toEqual([
    expect.objectContaining({ id: trainer.id, kind: 'training', models: [], pid: process.pid }),
  ]);
  await trainer.close();
  expect(await listWorkers(redis)).toEqual([]);
  redis.disconnect();
});
