import type { TensorInfo } from '../../checkpoint/safetensors.ts';
import { identity, kronecker, type Matrix } from '../matrix.ts';
import { loraInvalid, shown } from '../problems.ts';
import { requireFactor, sharedRank, type Algorithm, type Factors } from './algorithm.ts';

/** One of the two factors of the Kronecker product, as a product left · right. */
interface Half {
  readonly rows: number;
  readonly columns: number;
  readonly rank: number;
  /** Rank as the file gives it; null for a whole matrix. */
  readonly fileRank: number | null;
  read(read: (info: TensorInfo) => Promise<Matrix>): Promise<{ left: Matrix; right: Matrix }>;
}

/**
 * w1 ⊗ w2 · alpha / rank, where either may be a product of two; when neither is, alpha does not count. By
 * (a·b) ⊗ (c·d) = (a⊗c) · (b⊗d) this is one pair whose rank is the product of both ranks.
 */
export const lokr: Algorithm = (factors) => {
  const [first, second] = [half(factors, 'w1'), half(factors, 'w2')];
  if (first.fileRank !== null && second.fileRank !== null && first.fileRank !== second.fileRank) {
    throw loraInvalid(
      factors.file,
      `the two halves of ${shown(factors.stem)} have ranks ${first.fileRank} and ${second.fileRank}; ` +
        `one alpha cannot be for both`,
      { key: factors.stem, found: [first.fileRank, second.fileRank] },
    );
  }
  return {
    rank: first.rank * second.rank,
    inFeatures: first.columns * second.columns,
    outFeatures: first.rows * second.rows,
    alphaRank: second.fileRank ?? first.fileRank,
    build: async (read) => {
      const [a, b] = [await first.read(read), await second.read(read)];
      return { up: kronecker(a.left, b.left), down: kronecker(a.right, b.right) };
    },
  };
};

function half(factors: Factors, name: 'w1' | 'w2'): Half {
  const { file, stem, tensors } = factors;
  const split = [`${name}_a`, `${name}_b`] as const;
  if (!split.some((role) => tensors.has(role))) return wholeHalf(requireFactor(factors, name));
  if (tensors.has(name)) {
    throw loraInvalid(file, `${shown(stem)} has ${name} both whole and as a product`, { key: stem });
  }
  const [left, right] = [requireFactor(factors, split[0]), requireFactor(factors, split[1])];
  const rank = sharedRank(file, left, right);
  const [rows, columns] = [left.shape[0]!, right.shape[1]!];
  return {
    rows,
    columns,
    rank,
    fileRank: rank,
    read: async (read) => ({ left: await read(left), right: await read(right) }),
  };
}

/** A whole matrix is its own product with an identity, on its shorter side. */
function wholeHalf(info: TensorInfo): Half {
  const [rows, columns] = info.shape as [number, number];
  return {
    rows,
    columns,
    rank: Math.min(rows, columns),
    fileRank: null,
    read: async (read) => {
      const matrix = await read(info);
      return rows <= columns
        ? { left: identity(rows), right: matrix }
        : { left: matrix, right: identity(columns) };
    },
  };
}
