import { decodeFloat32, DTYPE_BYTES, type FloatDtype } from './dtypes.ts';
import { readTensor } from './safetensors.ts';

/** What a TensorView is made from. */
export interface TensorViewFields {
  readonly name: string;
  /** The stored tensor that the bytes belong to, as its file names it. */
  readonly stored: string;
  readonly dtype: FloatDtype;
  readonly shape: readonly number[];
  readonly file: string;
  readonly offset: number;
  readonly byteLength: number;
  readonly scale: number;
}

/**
 * A logical tensor: contiguous rows of one tensor of a file, under its canonical name. Nothing is read until it is
 * asked for, and the bytes can as well be mapped where they lie: `byteLength` bytes at `offset` of `file`,
 * row-major, little-endian. The value of an element is its stored value times `scale` (1 except in scaled fp8).
 */
export class TensorView implements TensorViewFields {
  readonly name: string;
  readonly stored: string;
  readonly dtype: FloatDtype;
  readonly shape: readonly number[];
  readonly file: string;
  readonly offset: number;
  readonly byteLength: number;
  readonly scale: number;

  constructor(fields: TensorViewFields) {
    this.name = fields.name;
    this.stored = fields.stored;
    this.dtype = fields.dtype;
    this.shape = fields.shape;
    this.file = fields.file;
    this.offset = fields.offset;
    this.byteLength = fields.byteLength;
    this.scale = fields.scale;
  }

  /** Rows [begin, end) along the first dimension. */
  rows(begin: number, end: number): TensorView {
    const [count = 0, ...rest] = this.shape;
    const whole = Number.isInteger(begin) && Number.isInteger(end);
    if (!whole || begin < 0 || begin > end || end > count) {
      throw new RangeError(`${this.name} has ${count} rows; [${begin}, ${end}) was asked for`);
    }
    const rowBytes = elementCount(rest) * DTYPE_BYTES[this.dtype];
    return new TensorView({
      ...this.#fields(),
      shape: [end - begin, ...rest],
      offset: this.offset + begin * rowBytes,
      byteLength: (end - begin) * rowBytes,
    });
  }

  /** The same elements under another name. */
  named(name: string): TensorView {
    return new TensorView({ ...this.#fields(), name });
  }

  /** The same elements in another shape. */
  reshaped(shape: readonly number[]): TensorView {
    if (elementCount(shape) !== elementCount(this.shape)) {
      throw new RangeError(
        `${this.name} of shape [${this.shape.join(', ')}] cannot become [${shape.join(', ')}]`,
      );
    }
    return new TensorView({ ...this.#fields(), shape });
  }

  #fields(): TensorViewFields {
    const { name, stored, dtype, shape, file, offset, byteLength, scale } = this;
    return { name, stored, dtype, shape, file, offset, byteLength, scale };
  }
}

/** Number of elements of a shape; 1 for a scalar's []. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** The values of a view in row-major order, scale applied. */
export async function readFloat32(view: TensorView): Promise<Float32Array> {
  return decodeFloat32(view.dtype, await readTensor(view), view.scale);
}
