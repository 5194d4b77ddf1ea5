import { composeDeltas } from './compose.ts';
import type { LoraDelta } from './types.ts';

const ramp = (count: number, step: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i * step));

function delta(module: string, rank: number, step: number, inFeatures = 5, outFeatures = 3): LoraDelta {
  return {
    module,
    rank,
    inFeatures,
    outFeatures,
    down: ramp(rank * inFeatures, step),
    up: ramp(outFeatures * rank, step + 1),
  };
}

/** up · down, [outFeatures, inFeatures]. */
function product({ up, down, rank, inFeatures, outFeatures }: LoraDelta): number[] {
  return Array.from({ length: outFeatures * inFeatures }, (_, i) => {
    const [row, column] = [Math.floor(i / inFeatures), i % inFeatures];
    let sum = 0;
    for (let r = 0; r < rank; r++) sum += up[row * rank + r]! * down[r * inFeatures + column]!;
    return sum;
  });
}

const asMap = (...deltas: LoraDelta[]) => new Map(deltas.map((one) => [one.module, one]));

test('several LoRAs on a module become one of the summed rank, with their weights inside', () => {
  const [a, b] = [delta('m', 2, 0.3), delta('m', 4, 0.7)];
  const composed = composeDeltas([
    { deltas: asMap(a), weight: 0.7 },
    { deltas: asMap(b), weight: -0.5 },
  ]).get('m')!;
  expect(composed).toMatchObject({ rank: 6, inFeatures: 5, outFeatures: 3 });
  const [pa, pb] = [product(a), product(b)];
  product(composed).forEach((value, i) => expect(value).toBeCloseTo(0.7 * pa[i]! - 0.5 * pb[i]!, 5));
});

test.each([
  [5, 3],
  [3, 5],
])('a single LoRA from %d to %d channels keeps its rank and takes its weight', (inFeatures, outFeatures) => {
  const only = delta('m', 2, 0.4, inFeatures, outFeatures);
  const composed = composeDeltas([{ deltas: asMap(only), weight: -1.5 }]).get('m')!;
  expect(composed.rank).toBe(2);
  product(composed).forEach((value, i) => expect(value).toBeCloseTo(-1.5 * product(only)[i]!, 5));
});

test('a module that only one LoRA has keeps its rank; weight 0 leaves a LoRA out', () => {
  const composed = composeDeltas([
    { deltas: asMap(delta('a', 2, 0.1)), weight: 1 },
    { deltas: asMap(delta('b', 3, 0.2)), weight: 1 },
    { deltas: asMap(delta('c', 3, 0.2)), weight: 0 },
  ]);
  expect([...composed].map(([module, { rank }]) => [module, rank])).toEqual([
    ['a', 2],
    ['b', 3],
  ]);
});

test('LoRAs that disagree on a shape are refused', () => {
  const parts = [
    { deltas: asMap(delta('m', 2, 0.1, 5)), weight: 1 },
    { deltas: asMap(delta('m', 2, 0.1, 6)), weight: 1 },
  ];
  expect(() => composeDeltas(parts)).toThrow('two LoRAs disagree on the shape of m');
});
