import type { FloatDtype } from './dtypes.ts';
import type { TensorView } from './tensor-view.ts';

/** Bytes of prepared weights written so far and in all. */
export interface PrepareProgress {
  readonly done: number;
  readonly total: number;
}

export interface PrepareOptions {
  readonly views: readonly TensorView[];
  /**
   * 'F32': every tensor, scale applied. 'F8_E4M3': 2-D F32, F16 and BF16 tensors are rounded to float8_e4m3fn as
   * torch casts; the others stay as they are.
   */
  readonly target: 'F32' | 'F8_E4M3';
  /** Folder for the prepared files; made when absent. */
  readonly cacheDir: string;
  readonly onProgress?: (progress: PrepareProgress) => void;
}

/** Where a prepared tensor lies: `offset` is a multiple of 4096. */
export interface PreparedTensor {
  readonly name: string;
  readonly dtype: FloatDtype;
  readonly shape: readonly number[];
  readonly file: string;
  readonly offset: number;
  readonly byteLength: number;
  /** Factor of scaled fp8 that is not part of the bytes; 1 for every other tensor. */
  readonly scale: number;
}
