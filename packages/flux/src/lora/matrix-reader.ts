import type { FileHandle } from 'node:fs/promises';
import { decodeFloat32, FLOAT_DTYPES, isFloatDtype } from '../checkpoint/dtypes.ts';
import { readInto, uninitialized } from '../checkpoint/files.ts';
import type { TensorInfo } from '../checkpoint/safetensors.ts';
import { isAllFinite, type Matrix } from './matrix.ts';
import { loraInvalid, loraUnsupported, shapeText, shown } from './problems.ts';

/** The values of an open file, none of them NaN or infinite. */
export class MatrixReader {
  readonly #handle: FileHandle;
  readonly #file: string;

  constructor(handle: FileHandle, file: string) {
    this.#handle = handle;
    this.#file = file;
  }

  /** @param info has two dimensions */
  async matrix(info: TensorInfo): Promise<Matrix> {
    const [rows, columns] = info.shape as [number, number];
    return { rows, columns, data: await this.values(info) };
  }

  async scalar(info: TensorInfo): Promise<number> {
    const { name, shape } = info;
    if (shape.length > 1 || (shape[0] ?? 1) !== 1) {
      throw loraInvalid(this.#file, `tensor ${shown(name)} is ${shapeText(shape)}; one number was expected`, {
        key: name,
        found: shape,
      });
    }
    return (await this.values(info))[0]!;
  }

  /** In memory that belongs to the caller. */
  async values(info: TensorInfo): Promise<Float32Array> {
    const { name, dtype, byteLength, offset } = info;
    if (!isFloatDtype(dtype)) {
      const allowed = FLOAT_DTYPES.join(', ');
      throw loraUnsupported(
        this.#file,
        `tensor ${shown(name)} has dtype ${dtype}; weights may be ${allowed}`,
        { key: name, found: dtype, allowed: FLOAT_DTYPES },
      );
    }
    const bytes = uninitialized(byteLength);
    await readInto(this.#handle, this.#file, bytes, offset);
    const values = dtype === 'F32' ? new Float32Array(bytes.buffer) : decodeFloat32(dtype, bytes);
    if (!isAllFinite(values)) {
      const at = values.findIndex((value) => !Number.isFinite(value));
      throw loraInvalid(
        this.#file,
        `tensor ${shown(name)} has ${values[at]} at element ${at}; finite numbers were expected`,
        { key: name, element: at, found: String(values[at]) },
      );
    }
    return values;
  }
}
