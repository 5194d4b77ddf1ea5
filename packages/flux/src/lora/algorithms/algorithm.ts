import type { TensorInfo } from '../../checkpoint/safetensors.ts';
import type { Matrix } from '../matrix.ts';
import { firstFew, loraInvalid, shapeText, shown } from '../problems.ts';

/** The tensors of one module by their role, as the file declares them. */
export interface Factors {
  readonly file: string;
  /** The module as the file names it, for messages. */
  readonly stem: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

export interface Pair {
  /** [rank, inFeatures]. */
  readonly down: Matrix;
  /** [outFeatures, rank]. */
  readonly up: Matrix;
}

/** What the header alone says about one change. */
export interface PlannedPair {
  readonly rank: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** What alpha is divided by; null when the algorithm does not use alpha. */
  readonly alphaRank: number | null;
  /** The pair before alpha; its `up` belongs to the caller. */
  build(read: (info: TensorInfo) => Promise<Matrix>): Promise<Pair>;
}

/** Checks shapes against each other and plans the low-rank pair. */
export type Algorithm = (factors: Factors) => PlannedPair;

/** @throws FluxError `lora_invalid` when it is absent, or no matrix with rows and columns */
export function requireFactor(factors: Factors, role: string): TensorInfo {
  const { file, stem, tensors } = factors;
  const info = tensors.get(role);
  if (!info) {
    const found = [...tensors.values()].map(({ name }) => shown(name));
    throw loraInvalid(
      file,
      `the ${role} matrix of ${shown(stem)} is missing; the file has only ${firstFew(found) || 'its alpha'}`,
      { key: stem, missing: role },
    );
  }
  if (info.shape.length !== 2 || info.shape.includes(0)) {
    throw loraInvalid(
      file,
      `tensor ${shown(info.name)} is ${shapeText(info.shape)}; two dimensions that are not empty were expected`,
      { key: info.name, found: info.shape },
    );
  }
  return info;
}

/** `left` has as many columns as `right` has rows: the rank. */
export function sharedRank(file: string, left: TensorInfo, right: TensorInfo): number {
  const [, rank] = left.shape as [number, number];
  if (right.shape[0] !== rank) {
    const shapes = `${shapeText(left.shape)} and ${shapeText(right.shape)}`;
    throw loraInvalid(
      file,
      `tensors ${shown(left.name)} and ${shown(right.name)} are ${shapes}; ` +
        `expected as many columns of the first as rows of the second`,
      { key: left.name, other: right.name, found: [left.shape, right.shape] },
    );
  }
  return rank;
}
