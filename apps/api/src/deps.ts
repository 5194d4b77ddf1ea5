import type {
  Catalog,
  Config,
  createLogger,
  createRedis,
  JobQueues,
  JobStore,
  LoraRegistry,
  ObjectStore,
} from '@atelier/shared';
import type { ApiSettings } from './settings.ts';

/** What the API stands on; main.ts makes it, tests make it around a Redis and a store of their own. */
export interface ApiDeps {
  config: Config;
  settings: ApiSettings;
  log: ReturnType<typeof createLogger>;
  redis: ReturnType<typeof createRedis>;
  jobs: JobStore;
  queues: JobQueues;
  store: ObjectStore;
  loras: LoraRegistry;
  catalog: Catalog;
  /** Aborts when the process shuts down: waits answer at once, event streams end. */
  shutdown: AbortSignal;
}
