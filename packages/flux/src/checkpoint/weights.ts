import type { TensorView } from './tensor-view.ts';

/** The tensors of one model part under their canonical names (see layouts/). */
export interface WeightSource {
  /** @throws FluxError `checkpoint_missing` when there is no such tensor */
  get(name: string): TensorView;
  has(name: string): boolean;
  names(): string[];
}
