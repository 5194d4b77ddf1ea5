import { createHash } from 'node:crypto';
import {
  type GenerationRecord,
  JobStore,
  createQueueWorker,
  createRedis,
  newAttemptToken,
} from '@atelier/shared';
import type { TestApi } from './api.ts';

/** 2 x 2 pixels. */
export const INSTANT_PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFUlEQVQImWM8ISfHwMDAxMDAwMDAAAAMfQEsgjQY7gAAAABJRU5ErkJggg==',
  'base64',
);

export interface InstantWorker {
  close(): Promise<void>;
}

/**
 * A worker whose engine is a constant picture, for tests of what stands before the engine. Records, queue and store
 * are the real ones.
 *
 * @param step called before each step of a job; may hold it up, or throw to end the job as failed
 */
export function startInstantWorker(
  api: TestApi,
  step: (record: GenerationRecord, index: number) => Promise<void> | void = () => {},
): InstantWorker {
  const redis = createRedis(api.config, 'worker');
  const jobs = new JobStore(redis);
  const worker = createQueueWorker(api.config, redis, 'generation', async ({ data }) => {
    const attempt = { ...data, token: newAttemptToken() };
    const { record } = await jobs.start(attempt, 'instant');
    if (record?.kind !== 'generation' || record.status !== 'running') return;
    const { steps, count, seed } = record.input;
    try {
      for (let i = 1; i <= steps; i++) {
        await step(record, i);
        await jobs.progress(attempt, { step: i, steps, fraction: i / steps, eta_s: (steps - i) / 100 });
        const now = await jobs.get(data);
        if (now?.cancel_requested_at) {
          await jobs.cancel(attempt);
          return;
        }
      }
    } catch (error) {
      await jobs.fail(attempt, { code: 'engine_failed', message: String(error), retryable: true });
      return;
    }
    const sha256 = createHash('sha256').update(INSTANT_PNG).digest('hex');
    const images = Array.from({ length: count }, (_, i) => ({
      key: `${data.tenant}/outputs/${data.id}/${attempt.token}/${i}.png`,
      width: 2,
      height: 2,
      seed: seed + i,
      sha256,
      content_type: 'image/png',
    }));
    for (const { key } of images) await api.store.put(key, INSTANT_PNG, { contentType: 'image/png' });
    await jobs.publish(attempt, images, { queue_ms: 1, total_ms: 2 });
  });
  worker.on('error', () => {});
  void worker.run();
  return {
    close: async () => {
      await worker.close(true);
      jobs.close();
      redis.disconnect();
    },
  };
}
