import { ApiKeyStore, DatasetStore, DatasetUploads } from '@atelier/shared';
import type { ApiDeps } from '../deps.ts';

const EVERY_MS = 3_600_000;

/** Removes what uploads and deletes left whose client or process is gone: now, and every hour until the shutdown. */
export function sweepDatasets({ log, redis, shutdown, store }: ApiDeps): void {
  const datasets = new DatasetStore(store);
  const uploads = new DatasetUploads(store, redis);
  const keys = new ApiKeyStore(redis);
  const sweep = async (): Promise<void> => {
    try {
      for (const tenant of (await keys.tenants()).keys()) {
        await datasets.sweep(tenant);
        await uploads.sweep(tenant);
      }
    } catch (error) {
      log.warn({ err: error }, 'rests of datasets could not be removed; the next hour tries again');
    }
  };
  void sweep();
  const timer = setInterval(() => void sweep(), EVERY_MS).unref();
  shutdown.addEventListener('abort', () => clearInterval(timer), { once: true });
}
