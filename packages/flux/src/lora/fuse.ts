import type { LoraDelta } from './types.ts';

/** One canonical module of a fused one; without a delta its rows are unchanged. */
export interface FusedPart {
  readonly delta: LoraDelta | undefined;
  readonly rows: number;
}

export type FusedDelta = Omit<LoraDelta, 'module'>;

/**
 * The changes of several modules, which read the same input, as one change of their rows: `down` matrices one below
 * the other, each `up` in its own rows and columns, zeros elsewhere. A `down` that modules share is put there once.
 */
export function fuseDeltas(parts: readonly FusedPart[]): FusedDelta {
  const deltas = parts.flatMap(({ delta }) => delta ?? []);
  const [first] = deltas;
  if (!first) throw new RangeError('no part has a delta');
  if (parts.length === 1) return first;
  const { inFeatures } = first;
  const offsets = new Map<Float32Array, number>();
  let rank = 0;
  for (const { down, rank: own } of deltas) {
    if (offsets.has(down)) continue;
    offsets.set(down, rank);
    rank += own;
  }
  const down = new Float32Array(rank * inFeatures);
  for (const [matrix, offset] of offsets) down.set(matrix, offset * inFeatures);
  const outFeatures = parts.reduce((sum, { rows }) => sum + rows, 0);
  const up = new Float32Array(outFeatures * rank);
  let begin = 0;
  for (const { delta, rows } of parts) {
    if (delta) placeRows(delta, up, rank, begin, offsets.get(delta.down)!);
    begin += rows;
  }
  return { rank, inFeatures, outFeatures, down, up };
}

/** Puts the rows of a delta's `up` into those of `target`, [., columns], from (row, column) on. */
function placeRows(
  delta: LoraDelta,
  target: Float32Array,
  columns: number,
  row: number,
  column: number,
): void {
  const { rank, outFeatures, up } = delta;
  for (let i = 0; i < outFeatures; i++)
    target.set(up.subarray(i * rank, (i + 1) * rank), (row + i) * columns + column);
}
