import type { FluxErrorCode } from '../errors.ts';
import type { LoadOptions } from '../model.ts';
import type { EngineImage, EngineRequest } from '../pipeline.ts';
import type { TrainEvent, TrainRequest, TrainResult } from '../training/train.ts';

/** What the engine process and its parent say to each other: one request at a time is answered by its id. */
export type ToEngine =
  | { type: 'load'; id: number; options: LoadOptions }
  | { type: 'generate'; id: number; request: EngineRequest }
  | { type: 'train'; id: number; request: TrainRequest }
  | { type: 'stats'; id: number }
  /** Stops the generation or training `id` at its next step; without effect when it has ended. */
  | { type: 'cancel'; id: number }
  | { type: 'close' };

export type FromEngine =
  | { type: 'load-progress'; id: number; done: number; total: number }
  | { type: 'progress'; id: number; progress: EngineProgress }
  | { type: 'train-event'; id: number; event: TrainEvent }
  | { type: 'result'; id: number; value: LoadResult | EngineImage | EngineStats | TrainResult }
  | {
      type: 'error';
      id: number;
      error: { code: FluxErrorCode; message: string; details: Record<string, unknown> };
    };

export interface EngineProgress {
  phase: 'text' | 'denoise' | 'decode';
  /** Finished steps. */
  step: number;
  steps: number;
}

export interface LoadResult {
  loadMs: number;
}

export interface EngineStats {
  pid: number;
  provider: 'cpu';
  model: string | null;
  rssBytes: number;
  loadMs: number | null;
  /** Pictures made since the process started. */
  generated: number;
}
