import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';
import type { Timings } from './contracts/job.ts';
import { ERRORS } from './errors.ts';

const SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300];

/** The metrics of a worker, on a registry of their own so that two workers fit in one process. */
export function createWorkerMetrics() {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const phases = new Histogram({
    name: 'atelier_job_phase_seconds',
    help: 'Time of published jobs by phase',
    labelNames: ['phase'],
    buckets: SECONDS,
    registers,
  });
  return {
    registry,
    /** outcome: succeeded, failed, canceled, retried, given_back, superseded; code: of the error, or empty. */
    jobs: new Counter({
      name: 'atelier_jobs_total',
      help: 'Attempts that ended, by outcome and error code',
      labelNames: ['kind', 'outcome', 'code'],
      registers,
    }),
    overhead: new Histogram({
      name: 'atelier_worker_overhead_seconds',
      help: 'Time of an attempt that the engine did not spend: records, image encoding, upload',
      buckets: [0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1, 3],
      registers,
    }),
    modelLoad: new Histogram({
      name: 'atelier_model_load_seconds',
      help: 'Time to load a model into the engine',
      labelNames: ['model'],
      buckets: SECONDS,
      registers,
    }),
    engineCrashes: new Counter({
      name: 'atelier_engine_crashes_total',
      help: 'Engine processes that ended without being asked to',
      registers,
    }),
    styleCache: new Counter({
      name: 'atelier_style_cache_total',
      help: 'LoRA files that jobs asked for, by result: hit was on disk, miss was fetched',
      labelNames: ['result'],
      registers,
    }),
    styleFetched: new Counter({
      name: 'atelier_style_fetched_bytes_total',
      help: 'Bytes of LoRA files fetched from the object store',
      registers,
    }),
    styleBytes: new Gauge({
      name: 'atelier_style_cache_bytes',
      help: 'Bytes of LoRA files on disk',
      registers,
    }),
    stalled: new Counter({
      name: 'atelier_jobs_stalled_total',
      help: 'Jobs whose worker stopped renewing its lock, as seen by this worker',
      registers,
    }),
    busy: new Gauge({ name: 'atelier_worker_busy', help: '1 while a job runs', registers }),
    /** Counts the phases of a job that was published. */
    observe(timings: Timings): void {
      for (const [name, ms] of Object.entries(timings))
        phases.observe({ phase: name.replace(/_ms$/, '') }, (ms ?? 0) / 1_000);
    },
  };
}

export type WorkerMetrics = ReturnType<typeof createWorkerMetrics>;

/** The code as a metric label: codes outside the table would make the number of series unbounded. */
export function codeLabel(code: string): string {
  return code in ERRORS ? code : 'internal_error';
}
