import type { LoraDelta } from './types.ts';

/** The changes of one model part by canonical module path. */
export type Deltas = ReadonlyMap<string, LoraDelta>;

export const NO_DELTAS: Deltas = new Map();

/**
 * Several LoRAs as one: for every module the ranks are laid end to end, so that any number of LoRAs costs one pair
 * of products of the summed rank. Weights are folded into `up`. Exact: up₁down₁w₁ + up₂down₂w₂ = [up₁w₁ up₂w₂][down₁; down₂].
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
  const { inFeatures, outFeatures } = list[0]!.delta;
  const rank = list.reduce((sum, { delta }) => sum + delta.rank, 0);
  const down = new Float32Array(rank * inFeatures);
  const up = new Float32Array(outFeatures * rank);
  let at = 0;
  for (const { delta, weight } of list) {
    if (delta.inFeatures !== inFeatures || delta.outFeatures !== outFeatures)
      throw new Error(`two LoRAs disagree on the shape of ${module}`);
    down.set(delta.down, at * inFeatures);
    for (let row = 0; row < outFeatures; row++)
      for (let r = 0; r < delta.rank; r++) up[row * rank + at + r] = delta.up[row * delta.rank + r]! * weight;
    at += delta.rank;
  }
  return { module, rank, inFeatures, outFeatures, down, up };
}
