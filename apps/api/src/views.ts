import type {
  Catalog,
  GenerationInputView,
  GenerationJob,
  GenerationRecord,
  JobRecord,
  ModelList,
  QueueCounts,
  QueueView,
  TrainingJob,
  TrainingRecord,
  WebhookView,
  WorkerInfo,
  WorkerView,
} from '@atelier/shared';

/**
 * A job as clients see it: a list of what is shown, so that a new field of the record stays inside until it is
 * added here.
 *
 * @param position jobs that start before this one; null when it is not waiting
 * @param origin what absolute URLs start with, without a slash at the end
 */
export function jobView(record: GenerationRecord, position: number | null, origin: string): GenerationJob {
  return {
    id: record.id,
    kind: record.kind,
    status: record.status,
    progress: record.progress,
    queue: { position, eta_s: null },
    input: inputView(record),
    output: record.output && {
      images: record.output.images.map(({ width, height, seed, sha256, content_type }, index) => ({
        url: `${origin}/v1/generations/${record.id}/images/${index}`,
        width,
        height,
        seed,
        sha256,
        content_type,
      })),
    },
    error: record.error,
    timings: record.timings,
    attempts: record.attempts,
    webhook: webhookView(record),
    metadata: record.metadata,
    created_at: record.created_at,
    started_at: record.started_at,
    finished_at: record.finished_at,
  };
}

/** A training as clients see it; see {@link jobView}. */
export function trainingView(record: TrainingRecord, position: number | null): TrainingJob {
  const lora = record.output?.lora;
  return {
    id: record.id,
    kind: record.kind,
    status: record.status,
    progress: record.progress,
    queue: { position, eta_s: null },
    input: record.input,
    output: lora === undefined ? null : { lora },
    error: record.error,
    attempts: record.attempts,
    webhook: webhookView(record),
    metadata: record.metadata,
    created_at: record.created_at,
    started_at: record.started_at,
    finished_at: record.finished_at,
  };
}

/** The query is left out, where secrets are; whoever gave the URL knows it. */
export function webhookView({ webhook }: JobRecord): WebhookView | null {
  return webhook && { url: webhook.url.replace(/[?#].*$/s, ''), events: webhook.events };
}

function inputView({ input }: GenerationRecord): GenerationInputView {
  const { image, ...rest } = input;
  return image ? { ...rest, image: { strength: image.strength } } : rest;
}

export function modelsView(catalog: Catalog): ModelList {
  return {
    data: catalog.models.map((model) => ({
      name: model.name,
      title: model.title,
      family: model.family,
      license: model.license,
      default: model === catalog.default,
      defaults: model.defaults,
    })),
  };
}

export function workerView(worker: WorkerInfo): WorkerView {
  const { id, kind, models, provider, device, device_reason, host, current_job, started_at } = worker;
  return { id, kind, models, provider, device, device_reason, host, current_job, started_at };
}

export function queueView(counts: QueueCounts): QueueView {
  const { waiting, delayed, active, failed, paused } = counts;
  return { waiting, delayed, active, failed, paused, demand: active + (paused ? 0 : waiting) };
}
