import type { Redis } from 'ioredis';
import { AtelierError } from '../errors.ts';
import type { JobStore } from '../jobs/job-store.ts';
import { KEY_PREFIX, checkedTenant } from '../jobs/keys.ts';
import { withLock } from '../lock.ts';
import { queueCall } from '../redis.ts';
import type { DatasetStore } from './store.ts';

/** Held while a dataset is being deleted. */
const deletingKey = (tenant: string, id: string): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:dataset:${id}:deleting`;

/**
 * Deletes a dataset with all its files, unless a training that has not ended uses it.
 *
 * A submission may come in between. A delete takes the lock, looks for trainings, then removes the dataset; whoever
 * accepts a training writes its record, looks for the lock ({@link isBeingDeleted}), then for the dataset. Either the
 * delete sees the record, or the submission sees the lock or that the dataset is gone. A delete that is refused
 * changes nothing that a trainer could see, and that of a process that died holds trainings off for seconds only.
 *
 * @throws AtelierError `not_found`; `dataset_in_use` with the trainings; `queue_unavailable` or `store_unavailable`
 */
export async function deleteDataset(
  { datasets, jobs, redis }: { datasets: DatasetStore; jobs: Pick<JobStore, 'open'>; redis: Redis },
  tenant: string,
  id: string,
): Promise<void> {
  await withLock(redis, [deletingKey(tenant, id)], async () => {
    if (!(await datasets.get(tenant, id)))
      throw new AtelierError('not_found', `No dataset has the id ${JSON.stringify(id.slice(0, 64))}`);
    const users: string[] = [];
    for await (const job of jobs.open('training'))
      if (job.kind === 'training' && job.tenant === tenant && job.input.dataset === id) users.push(job.id);
    if (users.length > 0) {
      const count = users.length === 1 ? '1 training that has' : `${users.length} trainings that have`;
      const names = `${users.slice(0, 3).join(', ')}${users.length > 3 ? ', …' : ''}`;
      throw new AtelierError('dataset_in_use', `${id} is used by ${count} not ended: ${names}`);
    }
    await datasets.delete(tenant, id);
  });
}

/** Whether a dataset is about to be gone; to be asked after the record of a training was written. */
export async function isBeingDeleted(redis: Redis, tenant: string, id: string): Promise<boolean> {
  return (await queueCall(() => redis.exists(deletingKey(tenant, id)))) === 1;
}
