import type { Redis } from 'ioredis';
import type { Logger } from 'pino';
import type { Registry } from 'prom-client';
import type { Config } from './config.ts';
import type { GenerationInput, GenerationRequest } from './contracts/generation.ts';
import type { JobKind } from './contracts/job.ts';
import type { JobStore } from './jobs/signatures.ts';
import type { JobRecord, JobRef } from './jobs/record.ts';
import type { ObjectStore } from './object-store/types.ts';

export declare function createObjectStore(config: Config): ObjectStore;

/** 'api' fails fast while Redis is away; 'worker' retries for ever. */
export type RedisPurpose = 'api' | 'worker';
export declare function createRedis(config: Config, purpose: RedisPurpose): Redis;
/** Resolves when Redis answers within `ms`; rejects with queue_unavailable. */
export declare function pingRedis(redis: Redis, ms?: number): Promise<void>;

export declare function createJobStore(redis: Redis): JobStore;

/** Numbers an autoscaler and the API read; `waiting` is every job not yet started. */
export interface QueueCounts {
  waiting: number;
  delayed: number;
  active: number;
  failed: number;
  paused: boolean;
}
export declare class JobQueues {
  constructor(config: Config, redis: Redis);
  /** Idempotent: the id of the record is the id in the queue. Create the record first. */
  enqueueGeneration(record: JobRecord): Promise<void>;
  enqueueTraining(record: JobRecord): Promise<void>;
  /** Jobs that will be started before this one; null when it is not waiting. */
  queuePosition(id: string, kind?: JobKind): Promise<number | null>;
  queueCounts(kind?: JobKind): Promise<QueueCounts>;
  /** Takes a job that has not started out of the queue (after a cancel); false when a worker has it. */
  remove(ref: JobRef): Promise<boolean>;
  /** Puts every queued or running record that the queue does not know back into it; returns their ids. */
  reconcile(store: JobStore): Promise<string[]>;
  close(): Promise<void>;
}

export interface WorkerInfo {
  id: string;
  kind: JobKind;
  models: string[];
  provider: string | null;
  pid: number;
  host: string;
  started_at: string;
  current_job: string | null;
}
/** Workers whose heartbeat is fresh. */
export declare function listWorkers(redis: Redis): Promise<WorkerInfo[]>;

export interface ModelDefaults {
  width: number;
  height: number;
  steps: number;
  guidance: number;
  max_sequence_length: number;
}
export interface ModelEntry {
  name: string;
  title: string;
  family: 'flux';
  license: string;
  defaults: ModelDefaults;
  /** Absolute paths; the shape of ModelFiles in @atelier/flux. */
  files: {
    transformer: string;
    vae: string;
    textEncoder: string;
    textEncoder2: string;
    tokenizer: string;
    tokenizer2: string;
    scheduler: string;
  };
}
export declare class Catalog {
  readonly models: readonly ModelEntry[];
  /** The first entry. */
  readonly default: ModelEntry;
  /** @throws AtelierError unknown_model that lists the names */
  get(name: string): ModelEntry;
}
export declare function loadCatalog(config: Config): Promise<Catalog>;

/**
 * Resolves defaults and the seed. The init image must already be in the store: its key goes in `imageKey`.
 * @throws AtelierError unknown_model; validation_failed for what this version cannot do yet
 */
export declare function resolveInput(
  request: GenerationRequest,
  catalog: Catalog,
  options?: { imageKey?: string },
): GenerationInput;

/** JSON lines; `service` is on each. */
export declare function createLogger(config: Config, service: string): Logger;

export declare const metricsRegistry: Registry;

export interface HealthServer {
  readonly port: number;
  close(): Promise<void>;
}
export declare function startHealthServer(options: {
  host: string;
  port: number;
  /** Readiness checks by name; each rejects when its part is away. */
  checks: Record<string, () => Promise<unknown>>;
  registry: Registry;
}): Promise<HealthServer>;

/** Runs closers in order on SIGTERM or SIGINT, then exits; a second signal exits at once. */
export declare function onShutdown(options: {
  log: Logger;
  timeoutMs: number;
  closers: { name: string; close: () => Promise<unknown> }[];
}): void;
