export { FluxError, type FluxErrorCode } from './errors.ts';
export type { ModelFiles } from './checkpoint/model-files.ts';
export type { Style } from './lora/types.ts';
export { FluxModel, type LoadOptions } from './model.ts';
export {
  generate,
  type EngineImage,
  type EngineRequest,
  type EngineTimings,
  type PipelineEvent,
} from './pipeline.ts';
export { EngineProcess, type EngineExit } from './runtime/engine-process.ts';
export { TRAINING_DEFAULTS, type TrainingOptions } from './training/options.ts';
export type { TrainEvent, TrainRequest, TrainResult } from './training/train.ts';
export type { EngineProgress, EngineStats, EngineTrainRequest } from './runtime/protocol.ts';
export type { Device } from './runtime/provider.ts';
