export type { SchedulerSpec } from './specs/scheduler.ts';
export type { ClipSpec, T5Spec } from './specs/text.ts';
export type { TransformerSpec } from './specs/transformer.ts';
export type { VaeSpec } from './specs/vae.ts';
