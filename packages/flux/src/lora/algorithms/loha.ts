import { identity, type Matrix, multiply } from '../matrix.ts';
import { loraInvalid, shapeText, shown } from '../problems.ts';
import { requireFactor, sharedRank, type Algorithm, type Pair } from './algorithm.ts';

/**
 * (w1_a · w1_b) ∘ (w2_a · w2_b) · alpha / rank, ∘ element by element. Two products of rank r make one of rank r²: its
 * columns are all products of a column of w1_a and one of w2_a, its rows likewise. Where r² is no less than the rank
 * that any matrix of this shape has, the change itself with an identity is the smaller pair.
 */
export const loha: Algorithm = (factors) => {
  const { file } = factors;
  const [w1a, w1b, w2a, w2b] = ['w1_a', 'w1_b', 'w2_a', 'w2_b'].map((role) =>
    requireFactor(factors, role),
  ) as [
    ReturnType<typeof requireFactor>,
    ReturnType<typeof requireFactor>,
    ReturnType<typeof requireFactor>,
    ReturnType<typeof requireFactor>,
  ];
  const rank = sharedRank(file, w1a, w1b);
  const otherRank = sharedRank(file, w2a, w2b);
  for (const [first, second] of [
    [w1a, w2a],
    [w1b, w2b],
  ] as const) {
    if (first.shape[0] === second.shape[0] && first.shape[1] === second.shape[1]) continue;
    throw loraInvalid(
      file,
      `tensors ${shown(first.name)} and ${shown(second.name)} are ${shapeText(first.shape)} and ` +
        `${shapeText(second.shape)}; they must be alike`,
      { key: second.name, found: second.shape, expected: first.shape },
    );
  }
  const outFeatures = w1a.shape[0]!;
  const inFeatures = w1b.shape[1]!;
  const full = Math.min(outFeatures, inFeatures);
  const isFull = rank * otherRank >= full;
  return {
    rank: isFull ? full : rank * otherRank,
    inFeatures,
    outFeatures,
    alphaRank: rank,
    build: async (read) => {
      const [a1, b1, a2, b2] = [await read(w1a), await read(w1b), await read(w2a), await read(w2b)];
      if (isFull) return fullPair(hadamard(multiply(a1, b1), multiply(a2, b2)));
      return { up: columnProducts(a1, a2), down: rowProducts(b1, b2) };
    },
  };
};

/** The change with an identity on its shorter side. */
function fullPair(change: Matrix): Pair {
  return change.rows <= change.columns
    ? { up: identity(change.rows), down: change }
    : { up: change, down: identity(change.columns) };
}

function hadamard(a: Matrix, b: Matrix): Matrix {
  return { ...a, data: a.data.map((value, i) => value * b.data[i]!) };
}

function columnProducts(a: Matrix, b: Matrix): Matrix {
  const columns = a.columns * b.columns;
  const data = new Float32Array(a.rows * columns);
  let at = 0;
  for (let row = 0; row < a.rows; row++)
    for (let i = 0; i < a.columns; i++)
      for (let j = 0; j < b.columns; j++)
        data[at++] = a.data[row * a.columns + i]! * b.data[row * b.columns + j]!;
  return { rows: a.rows, columns, data };
}

function rowProducts(a: Matrix, b: Matrix): Matrix {
  const data = new Float32Array(a.rows * b.rows * a.columns);
  let at = 0;
  for (let i = 0; i < a.rows; i++)
    for (let j = 0; j < b.rows; j++)
      for (let column = 0; column < a.columns; column++)
        data[at++] = a.data[i * a.columns + column]! * b.data[j * b.columns + column]!;
  return { rows: a.rows * b.rows, columns: a.columns, data };
}
