import { firstFew, unsupported } from './problems.ts';
import type { StoredTensor, StoredTensors } from './stored-tensors.ts';

/** The parts of a model that have weights. */
export type ModelPart = 'transformer' | 'vae' | 'clip' | 't5';

/** Where all-in-one files keep each part. */
const PREFIXES: Readonly<Record<ModelPart, readonly string[]>> = Object.freeze({
  transformer: ['model.diffusion_model.', 'diffusion_model.'],
  vae: ['vae.', 'first_stage_model.'],
  clip: ['text_encoders.clip_l.transformer.'],
  t5: ['text_encoders.t5xxl.transformer.'],
});

/** Beginnings of names that mark an all-in-one file, of whatever part. */
const ALL_IN_ONE = Object.freeze([...Object.values(PREFIXES).flat(), 'text_encoders.', 'cond_stage_model.']);

/**
 * The tensors of one part, their prefix taken off, when the file is an all-in-one file; otherwise all of them. A
 * tensor that belongs to no part known to lie in such files is refused: it would be left out silently.
 */
export function selectPart(tensors: StoredTensors, part: ModelPart): StoredTensors {
  const names = [...tensors.entries.keys()];
  const prefix = PREFIXES[part].find((candidate) => names.some((name) => name.startsWith(candidate)));
  if (!prefix) return tensors;
  const foreign = names.filter((name) => !ALL_IN_ONE.some((known) => name.startsWith(known)));
  if (foreign.length > 0) {
    throw unsupported(
      tensors.location,
      `has the ${part} under ${prefix} and, beside it, ${foreign.length} unknown tensors: ${firstFew(foreign)}`,
      { unknown: foreign.slice(0, 5), count: foreign.length },
    );
  }
  const entries = new Map<string, StoredTensor>();
  for (const [name, tensor] of tensors.entries) {
    if (name.startsWith(prefix)) entries.set(name.slice(prefix.length), tensor);
  }
  return { location: tensors.location, entries };
}
