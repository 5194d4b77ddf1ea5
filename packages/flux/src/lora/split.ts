import type { Pair } from './algorithms/index.ts';
import type { PlannedPart } from './plan.ts';
import type { LoraDelta } from './types.ts';

/**
 * The change of a fused module as one change per canonical module: the rows of `up` that are its own, and all of
 * `down`, which they share. Ranks in which a part's rows are all zero are left out of it, so that projections which
 * were trained on their own and stacked, `up` block by block, come apart again; a part with none left is unchanged.
 */
export function splitPair({ up, down }: Pair, parts: readonly PlannedPart[]): LoraDelta[] {
  const { rows: rank, columns: inFeatures } = down;
  const deltas: LoraDelta[] = [];
  for (const { module, begin, end } of parts) {
    const own = up.data.subarray(begin * rank, end * rank);
    const shape = { module, inFeatures, outFeatures: end - begin };
    const used = parts.length > 1 ? usedColumns(own, rank) : undefined;
    if (!used || used.length === rank) deltas.push({ ...shape, rank, down: down.data, up: own });
    else if (used.length > 0) {
      deltas.push({
        ...shape,
        rank: used.length,
        down: pickRows(down.data, inFeatures, used),
        up: pickColumns(own, rank, used),
      });
    }
  }
  return deltas;
}

/** The columns that are not zero throughout. */
function usedColumns(data: Float32Array, columns: number): number[] {
  const used = new Uint8Array(columns);
  let left = columns;
  for (let begin = 0; begin < data.length && left > 0; begin += columns) {
    for (let column = 0; column < columns; column++) {
      if (data[begin + column] === 0 || used[column]) continue;
      used[column] = 1;
      left--;
    }
  }
  return Array.from(used.keys()).filter((column) => used[column]);
}

function pickRows(data: Float32Array, columns: number, rows: readonly number[]): Float32Array {
  const out = new Float32Array(rows.length * columns);
  rows.forEach((row, i) => out.set(data.subarray(row * columns, (row + 1) * columns), i * columns));
  return out;
}

function pickColumns(data: Float32Array, columns: number, picked: readonly number[]): Float32Array {
  const rows = data.length / columns;
  const out = new Float32Array(rows * picked.length);
  for (let row = 0; row < rows; row++)
    for (let i = 0; i < picked.length; i++) out[row * picked.length + i] = data[row * columns + picked[i]!]!;
  return out;
}
