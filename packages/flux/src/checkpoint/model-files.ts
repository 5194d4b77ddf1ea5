import type { ClipSpec, SchedulerSpec, T5Spec, TransformerSpec, VaeSpec } from './spec.ts';
import type { WeightSource } from './weights.ts';

/** Absolute paths of the parts of a model, each a file or a folder. */
export interface ModelFiles {
  readonly transformer: string;
  readonly vae: string;
  /** CLIP. */
  readonly textEncoder: string;
  /** T5. */
  readonly textEncoder2: string;
  readonly tokenizer: string;
  readonly tokenizer2: string;
  readonly scheduler: string;
}

/** A part whose headers were read and whose every tensor has the shape that `spec` demands. */
export interface OpenedPart<Spec> {
  readonly weights: WeightSource;
  readonly spec: Spec;
}

export interface OpenedModel {
  readonly files: ModelFiles;
  readonly transformer: OpenedPart<TransformerSpec>;
  readonly vae: OpenedPart<VaeSpec>;
  readonly clip: OpenedPart<ClipSpec>;
  readonly t5: OpenedPart<T5Spec>;
  readonly scheduler: SchedulerSpec;
}
