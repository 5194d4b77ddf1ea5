export { ApiKeyStore, type ApiKeyRecord, refusalOf } from './api-keys/store.ts';
export * from './catalog.ts';
export * from './config.ts';
export * from './contracts/api-key.ts';
export * from './contracts/dataset.ts';
export * from './contracts/generation.ts';
export * from './contracts/job.ts';
export * from './contracts/lora.ts';
export * from './contracts/resources.ts';
export * from './contracts/training.ts';
export * from './contracts/webhook.ts';
export { deleteDataset, isBeingDeleted } from './datasets/delete.ts';
export { datasetFileKey, datasetKey, isDatasetId, uploadArchiveKey, uploadKey } from './datasets/names.ts';
export { DatasetStore, type NewDataset, type NewDatasetFile } from './datasets/store.ts';
export { type DatasetUploadRecord, DatasetUploads } from './datasets/uploads.ts';
export * from './errors.ts';
export * from './health.ts';
export * from './ids.ts';
export * from './job-error.ts';
export { JobStore } from './jobs/job-store.ts';
export * from './jobs/record.ts';
export * from './local-redis/index.ts';
export * from './logging.ts';
export { readLoraVersion } from './loras/bucket.ts';
export { fileKey, formatPin, type LoraRef, parseLoraRef, versionKey } from './loras/names.ts';
export { latestOf, type LoraRecord, loraVersionView, loraView } from './loras/record.ts';
export { LoraRegistry, type NewLoraVersion } from './loras/registry.ts';
export * from './metrics.ts';
export { createObjectStore } from './object-store/create.ts';
export { FolderStore } from './object-store/folder-store.ts';
export { S3Store, type S3Options } from './object-store/s3-store.ts';
export * from './object-store/types.ts';
export { whileStoreIsAway } from './patience.ts';
export { ProgressReporter } from './progress-reporter.ts';
export * from './queue.ts';
export { createRedis, pingRedis, type RedisPurpose } from './redis.ts';
export * from './resolve-input.ts';
export { serveQueue } from './serve-queue.ts';
export * from './shutdown.ts';
export * from './trainings.ts';
export { BREAKER, Breaker, type BreakerOptions, type Endpoint } from './webhooks/breaker.ts';
export {
  type DeliveryClaim,
  type DeliveryRecord,
  WebhookDeliveries,
  deliveryId,
  deliveryRef,
} from './webhooks/deliveries.ts';
export { webhookSecret } from './webhooks/secret.ts';
export * from './workers.ts';
