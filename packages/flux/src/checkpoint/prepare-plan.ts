import { DTYPE_BYTES, type FloatDtype } from './dtypes.ts';
import { elementCount, type TensorView } from './tensor-view.ts';

/**
 * 'F32': every tensor, scale applied. 'F8_E4M3': 2-D tensors wider than a byte are rounded to float8_e4m3fn as torch
 * casts, scale applied; the others stay as they are.
 */
export type PrepareTarget = 'F32' | 'F8_E4M3';

/** A tensor of the prepared file. */
export interface PlannedTensor {
  readonly view: TensorView;
  readonly dtype: FloatDtype;
  /** Factor that is not part of the prepared bytes. */
  readonly scale: number;
  readonly offset: number;
  readonly byteLength: number;
}

/** Where every tensor goes, in the order of the source files, which is also the order of writing. */
export interface Plan {
  readonly tensors: readonly PlannedTensor[];
  /** Size of the prepared file. */
  readonly size: number;
}

/** Part of one tensor that is read and converted at once. */
export interface Piece {
  readonly tensor: PlannedTensor;
  /** Range of the source file. */
  readonly begin: number;
  readonly end: number;
  /** Place in the prepared file. */
  readonly outBegin: number;
  readonly outLength: number;
}

/** Neighbouring pieces of one source file that are read with one call and written with one. */
export interface Batch {
  readonly file: string;
  readonly begin: number;
  end: number;
  readonly outBegin: number;
  outEnd: number;
  readonly pieces: Piece[];
}

/** Pages are of this size, and ONNX Runtime maps external data only from whole pages. */
const ALIGNMENT = 4096;
/** Source bytes read at once; in fp32 up to four times as many are written. A multiple of every element size. */
export const BATCH_BYTES = 4 * 1024 * 1024;

function compare(a: string, b: string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

/** Lays the tensors out in one file, each at a multiple of 4096 bytes. */
export function planLayout(
  views: readonly TensorView[],
  target: PrepareTarget,
  quantize: (view: TensorView) => boolean = () => true,
): Plan {
  if (new Set(views.map((view) => view.name)).size !== views.length) {
    throw new RangeError('two of the tensors to prepare have the same name');
  }
  const sorted = views.toSorted(
    (a, b) => compare(a.file, b.file) || a.offset - b.offset || compare(a.name, b.name),
  );
  let size = 0;
  const tensors = sorted.map((view): PlannedTensor => {
    const isQuantized = view.shape.length === 2 && DTYPE_BYTES[view.dtype] > 1 && quantize(view);
    const dtype = target === 'F32' || isQuantized ? target : view.dtype;
    const scale = dtype === view.dtype && target !== 'F32' ? view.scale : 1;
    const byteLength = elementCount(view.shape) * DTYPE_BYTES[dtype];
    const offset = size;
    size = Math.ceil((offset + byteLength) / ALIGNMENT) * ALIGNMENT;
    return { view, dtype, scale, offset, byteLength };
  });
  return { tensors, size };
}

/** Cuts a plan into batches whose source ranges have at most BATCH_BYTES. */
export function* batches(plan: Plan): Generator<Batch, void, void> {
  let batch: Batch | undefined;
  for (const piece of pieces(plan)) {
    if (batch && joins(batch, piece)) {
      batch.pieces.push(piece);
      batch.end = Math.max(batch.end, piece.end);
      batch.outEnd = piece.outBegin + piece.outLength;
    } else {
      if (batch) yield batch;
      const { tensor, begin, end, outBegin, outLength } = piece;
      batch = { file: tensor.view.file, begin, end, outBegin, outEnd: outBegin + outLength, pieces: [piece] };
    }
  }
  if (batch) yield batch;
}

function joins(batch: Batch, piece: Piece): boolean {
  // Where views overlap, a later one may begin before the last piece of an earlier one.
  const isAhead = piece.tensor.view.file === batch.file && piece.begin >= batch.begin;
  return isAhead && Math.max(piece.end, batch.end) - batch.begin <= BATCH_BYTES;
}

function* pieces(plan: Plan): Generator<Piece, void, void> {
  for (const tensor of plan.tensors) {
    const { view, dtype, offset } = tensor;
    const growth = DTYPE_BYTES[dtype] / DTYPE_BYTES[view.dtype];
    for (let done = 0; done < view.byteLength; done += BATCH_BYTES) {
      const length = Math.min(BATCH_BYTES, view.byteLength - done);
      const begin = view.offset + done;
      const outBegin = offset + done * growth;
      yield { tensor, begin, end: begin + length, outBegin, outLength: length * growth };
    }
  }
}
