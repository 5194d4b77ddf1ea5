/** Reading and writing of LoRA files, for programs that run no model. */
export { FluxError, type FluxErrorCode } from '../errors.ts';
export { readLora, type ReadLoraOptions } from './read.ts';
export { loraTarget } from './target.ts';
export type { Lora, LoraDelta, LoraTarget, ModuleShapes } from './types.ts';
