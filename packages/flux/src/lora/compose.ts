import type { LoraDelta } from './types.ts';

/** The changes of one model part by canonical module path. */
export type Deltas = ReadonlyMap<string, LoraDelta>;

export const NO_DELTAS: Deltas = new Map();

/**
 * Several LoRAs as one: for every module the ranks are laid end to end, so that any number of LoRAs costs one pair
 * of products of the summed rank. Weights are folded in. Exact: up₁down₁w₁ + up₂down₂w₂ = [up₁w₁ up₂w₂][down₁; down₂].
 */
export function composeDeltas(parts: readonly { deltas: Deltas; weight: number }[]): Deltas {
  const byModule = new Map<string, { delta: LoraDelta; weight: number }[]>();
  for (const { deltas, weight } of parts) {
    if (weight === 0) continue;
    for (const delta of deltas.values()) {
      const list = byModule.get(delta.module) ?? [];
      byModule.set(delta.module, list);
      list.push({ delta, weight });
    }
  }
  return new Map([...byModule].map(([module, list]) => [module, concatRanks(module, list)]));
}

function concatRanks(module: string, list: readonly { delta: LoraDelta; weight: number }[]): LoraDelta {
  const [{ delta: first, weight: only }] = list as [{ delta: LoraDelta; weight: number }];
  const { inFeatures, outFeatures } = first;
  // The usual case, and 65 million values for a LoRA of FLUX.1: the smaller matrix takes the weight, the other is shared.
  if (list.length === 1) {
    if (only === 1) return first;
    const { down, up } = first;
    return down.length < up.length
      ? { ...first, down: scaled(down, only) }
      : { ...first, up: scaled(up, only) };
  }
  const rank = list.reduce((sum, { delta }) => sum + delta.rank, 0);
  const down = new Float32Array(rank * inFeatures);
  const up = new Float32Array(outFeatures * rank);
  let at = 0;
  for (const { delta, weight } of list) {
    if (delta.inFeatures !== inFeatures || delta.outFeatures !== outFeatures)
      throw new Error(`two LoRAs disagree on the shape of ${module}`);
    down.set(delta.down, at * inFeatures);
    const source = delta.up;
    const width = delta.rank;
    for (let row = 0, from = 0; row < outFeatures; row++) {
      let to = row * rank + at;
      for (let r = 0; r < width; r++) up[to++] = source[from++]! * weight;
    }
    at += width;
  }
  return { module, rank, inFeatures, outFeatures, down, up };
}

function scaled(values: Float32Array, factor: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) out[i] = values[i]! * factor;
  return out;
}
