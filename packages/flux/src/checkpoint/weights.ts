import { applyLayout, type Layout, type MappedWeights } from './layouts/layout.ts';
import { clipLayout, t5Layout } from './layouts/text.ts';
import { transformerLayout } from './layouts/transformer.ts';
import { vaeLayout } from './layouts/vae.ts';
import { selectPart, type ModelPart } from './model-parts.ts';
import { resolveScales } from './scaled-fp8.ts';
import { openStoredTensors, type StoredTensors } from './stored-tensors.ts';
import type { TensorView } from './tensor-view.ts';

/** The tensors of one model part under their canonical names (see layouts/). */
export interface WeightSource {
  /** @throws FluxError `checkpoint_missing` when there is no such tensor */
  get(name: string): TensorView;
  has(name: string): boolean;
  names(): string[];
}

const LAYOUTS: Readonly<Record<ModelPart, (tensors: StoredTensors) => Layout>> = Object.freeze({
  transformer: transformerLayout,
  vae: vaeLayout,
  clip: clipLayout,
  t5: t5Layout,
});

/**
 * Opens the weights of a model part: one .safetensors file, an all-in-one file that holds the part under a prefix,
 * or a Hugging Face folder. Only headers and the scales of scaled fp8 are read.
 *
 * @throws FluxError `checkpoint_missing`, `checkpoint_invalid`, `checkpoint_unsupported`
 */
export async function openWeights(path: string, part: ModelPart): Promise<MappedWeights> {
  const tensors = await resolveScales(selectPart(await openStoredTensors(path), part));
  return applyLayout(tensors, LAYOUTS[part](tensors));
}
