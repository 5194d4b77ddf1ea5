import type { FluxErrorCode } from '../errors.ts';
import type { LoadOptions } from '../model.ts';
import type { EngineImage, EngineRequest } from '../pipeline.ts';
import type { Device } from './provider.ts';
import type { ResidencyPlan } from './residency.ts';
import type { Provider } from './session.ts';
import type { TrainEvent, TrainRequest, TrainResult } from '../training/train.ts';

/** What the engine process and its parent say to each other: one request at a time is answered by its id. */
export type ToEngine =
  | { type: 'load'; id: number; options: EngineLoadOptions }
  | { type: 'generate'; id: number; request: EngineRequest }
  | { type: 'train'; id: number; request: EngineTrainRequest }
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

/** Where the model runs is for the engine process to find out. */
export interface EngineLoadOptions extends Omit<LoadOptions, 'device'> {
  /** 'auto' when absent. */
  provider?: 'auto' | Provider;
}

/** As {@link EngineLoadOptions}. */
export interface EngineTrainRequest extends Omit<TrainRequest, 'model'> {
  model: EngineLoadOptions;
}

export interface LoadResult {
  loadMs: number;
  device: Device;
  /** What is where on the device; null on the processor. */
  residency: ResidencyPlan | null;
}

export interface EngineStats {
  pid: number;
  /** null until a model was loaded. */
  provider: Provider | null;
  model: string | null;
  rssBytes: number;
  loadMs: number | null;
  /** Pictures made since the process started. */
  generated: number;
}
