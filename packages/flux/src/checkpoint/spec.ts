export { readScheduler, type SchedulerSpec } from './specs/scheduler.ts';
export {
  CLIP_CONFIG,
  clipShapes,
  clipSpec,
  T5_CONFIG,
  t5Spec,
  type ClipSpec,
  type T5Spec,
} from './specs/text.ts';
export {
  TRANSFORMER_CONFIG,
  transformerShapes,
  transformerSpec,
  type TransformerSpec,
} from './specs/transformer.ts';
export { VAE_CONFIG, vaeSpec, type VaeSpec } from './specs/vae.ts';
