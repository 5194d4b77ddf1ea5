/** LoRA files, and the models that they are for, for programs that run no model. */
export { openModel, type ModelFiles } from '../checkpoint/model-files.ts';
export { FluxError, type FluxErrorCode } from '../errors.ts';
export { writeLora, type LoraDtype, type LoraFormat } from './export.ts';
export { readLora, type ReadLoraOptions } from './read.ts';
export { loraTarget } from './target.ts';
export type { Lora, LoraDelta, LoraTarget, ModuleShapes } from './types.ts';
