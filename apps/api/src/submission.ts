import {
  AtelierError,
  DatasetStore,
  type GenerationRecord,
  type GenerationRequest,
  type JobError,
  type JobRef,
  type JobWebhook,
  type TrainingRecord,
  type TrainingRequest,
  isBeingDeleted,
  jobKindOf,
  newJobId,
  resolveInput,
  resolveTraining,
} from '@atelier/shared';
import type { ApiDeps } from './deps.ts';
import { asJob } from './job-record.ts';
import { type InitImageFile, parseInitImage } from './images/init-image.ts';
import { pinStyles } from './loras/pin-styles.ts';
import { invalid } from './validation/validate.ts';

type Deps = Pick<ApiDeps, 'catalog' | 'jobs' | 'log' | 'loras' | 'queues' | 'redis' | 'store'>;

const RETRY_MS = 2_000;

/**
 * Accepts jobs: styles pinned, init image, record, queue entry, in this order, so that what a client was told is accepted survives
 * any crash.
 *
 * When a step fails the client is told so and may send the request again; to keep it from paying twice, what was
 * begun is taken back: the record ends as failed. While Redis is away that has to wait, so {@link takeBack} is called
 * again at each reconnect. Only a crash of the API in that very state leaves a record that the reconciler will run
 * although its client was told 503: at worst a job too many, never one too few.
 */
export class Submissions {
  readonly #deps: Deps;
  readonly #unsettled = new Map<string, JobRef>();
  #retry: NodeJS.Timeout | undefined;

  constructor(deps: Deps) {
    this.#deps = deps;
  }

  /** @throws AtelierError of the check that failed or the part that is away; nothing is queued then */
  async submit(
    tenant: string,
    request: GenerationRequest,
    webhook: JobWebhook | null = null,
  ): Promise<GenerationRecord> {
    const { catalog, jobs, loras, queues } = this.#deps;
    const id = newJobId('generation');
    const image = request.image ? parseInitImage(request.image.file) : null;
    const imageKey = image ? initImageKey(tenant, id, image) : null;
    const styles = await pinStyles(loras, tenant, request.styles);
    const input = resolveInput(request, catalog, { styles, ...(imageKey ? { imageKey } : {}) });
    if (image && imageKey)
      await this.#deps.store.put(imageKey, image.bytes, { contentType: image.contentType });
    return this.#accept({ tenant, id }, async () => {
      const record = await jobs.create({
        kind: 'generation',
        tenant,
        id,
        input,
        metadata: request.metadata,
        webhook,
      });
      // A delete that did not see this record yet has taken the LoRA off the index before it looked.
      await pinStyles(loras, tenant, styles);
      await queues.enqueueGeneration(record);
      return asJob(record, 'generation', id);
    });
  }

  /**
   * @throws AtelierError as {@link submit} does; `validation_failed` when there is no such dataset, `conflict` while it
   * is being deleted
   */
  async submitTraining(
    tenant: string,
    request: TrainingRequest,
    webhook: JobWebhook | null = null,
  ): Promise<TrainingRecord> {
    const { catalog, jobs, queues, redis, store } = this.#deps;
    const id = newJobId('training');
    const input = resolveTraining(request, catalog);
    const { dataset } = input;
    const datasets = new DatasetStore(store);
    const requireDataset = async (): Promise<void> => {
      if (await datasets.get(tenant, dataset)) return;
      const message = `found ${dataset}, which is no dataset; GET /v1/datasets lists them`;
      throw invalid([{ field: 'dataset', message }]);
    };
    await requireDataset();
    return this.#accept({ tenant, id }, async () => {
      const record = await jobs.create({
        kind: 'training',
        tenant,
        id,
        input,
        metadata: request.metadata,
        webhook,
      });
      // A delete that did not see this record yet is under way or done; in this order none is missed.
      if (await isBeingDeleted(redis, tenant, dataset))
        throw new AtelierError('conflict', `dataset: ${dataset} is being deleted`);
      await requireDataset();
      await queues.enqueueTraining(record);
      return asJob(record, 'training', id);
    });
  }

  async #accept<T>(ref: JobRef, accept: () => Promise<T>): Promise<T> {
    try {
      return await accept();
    } catch (error) {
      this.#unsettled.set(ref.id, ref);
      // Not awaited: the answer must not wait for a Redis that has just failed to answer.
      void this.takeBack();
      throw error;
    }
  }

  /** Ends the records whose clients were told that their job was not accepted; tries again later what it cannot. */
  async takeBack(): Promise<void> {
    const { jobs, log, queues } = this.#deps;
    clearTimeout(this.#retry);
    for (const ref of this.#unsettled.values()) {
      try {
        await jobs.disown(ref, NOT_ACCEPTED);
        await queues.remove(ref, jobKindOf(ref.id) ?? undefined);
        this.#unsettled.delete(ref.id);
      } catch (error) {
        log.warn({ err: error, job_id: ref.id }, 'a job that was not accepted could not be taken back yet');
        // Redis may hang without closing the connection, and then there is no reconnect to wait for.
        clearTimeout(this.#retry);
        this.#retry = setTimeout(() => void this.takeBack(), RETRY_MS).unref();
      }
    }
  }
}

const NOT_ACCEPTED: JobError = Object.freeze({
  code: 'queue_unavailable',
  message: 'The job could not be queued, and its client was told so',
  retryable: true,
});

function initImageKey(tenant: string, id: string, image: InitImageFile): string {
  return `tenants/${tenant}/inputs/${id}/image.${image.contentType.slice('image/'.length)}`;
}
