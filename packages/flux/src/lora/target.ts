import { clipShapes, transformerShapes, type ClipSpec, type TransformerSpec } from '../checkpoint/spec.ts';
import type { LoraTarget, ModuleShapes } from './types.ts';

const WEIGHT = '.weight';
/** Tables that are looked up in, not multiplied with. */
const EMBEDDINGS = 'text_model.embeddings.';

/** The linear modules of a model, which are what a LoRA may change. */
export function loraTarget(model: { transformer: TransformerSpec; clip: ClipSpec }): LoraTarget {
  return {
    transformer: linears(transformerShapes(model.transformer)),
    clip: linears(clipShapes(model.clip)),
  };
}

function linears(shapes: ReadonlyMap<string, readonly number[]>): ModuleShapes {
  const modules = new Map<string, readonly [number, number]>();
  for (const [name, [rows, columns]] of shapes) {
    if (!name.endsWith(WEIGHT) || name.startsWith(EMBEDDINGS)) continue;
    if (rows !== undefined && columns !== undefined) {
      modules.set(name.slice(0, -WEIGHT.length), [rows, columns]);
    }
  }
  return modules;
}
