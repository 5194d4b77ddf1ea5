import { DTYPE_BYTES, isDtype, type Dtype } from './dtypes.ts';
import { isObject, parseJsonObject } from './json.ts';
import { invalid, shown, unsupported } from './problems.ts';

/** One tensor of a safetensors file: `byteLength` bytes, row-major and little-endian, at `offset` of `file`. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly file: string;
  /** From the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
}

/** What the header of a safetensors file says, checked to add up. */
export interface SafetensorsHeader {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/** The key of the header that is no tensor. */
export const METADATA_KEY = '__metadata__';

/**
 * Checks and reads the JSON part of a safetensors file. As in the reference implementation, the tensors must cover
 * the bytes after the header exactly: no hole, no overlap, nothing left over.
 *
 * @param json the JSON part
 * @param dataBegin offset of the first byte after it
 * @param size size of the file in bytes
 */
export function parseHeader(
  file: string,
  json: Uint8Array,
  dataBegin: number,
  size: number,
): SafetensorsHeader {
  if (json[0] !== 0x7b) throw invalid(file, 'header does not start with "{"', { found: json[0] });
  const tensors = new Map<string, TensorInfo>();
  let metadata: Record<string, string> = {};
  for (const [key, value] of Object.entries(parseJsonObject(file, 'header', json))) {
    if (key === METADATA_KEY) metadata = parseMetadata(file, value);
    else tensors.set(key, parseTensor(file, key, value, dataBegin, size));
  }
  checkCoverage(file, [...tensors.values()], dataBegin, size);
  return { metadata, tensors };
}

function parseMetadata(file: string, value: unknown): Record<string, string> {
  if (!isObject(value)) {
    throw invalid(file, `${METADATA_KEY} is ${shown(value)}; an object of strings was expected`);
  }
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw invalid(file, `${METADATA_KEY} has ${shown(text)} under ${shown(key)}; a string was expected`, {
        key,
      });
    }
  }
  return value as Record<string, string>;
}

function parseTensor(
  file: string,
  name: string,
  value: unknown,
  dataBegin: number,
  size: number,
): TensorInfo {
  const wrong = (field: string, found: unknown, expected: string) =>
    invalid(file, `tensor ${shown(name)} has ${field} ${shown(found)}; expected ${expected}`, {
      tensor: name,
      field,
      found: shown(found),
      expected,
    });
  if (!isObject(value)) throw wrong('the entry', value, 'an object with dtype, shape and data_offsets');
  const { dtype, shape, data_offsets: offsets, ...rest } = value;
  // Passing over a field that a later version of the format may define would be reading it wrongly.
  const [extra] = Object.keys(rest);
  if (extra !== undefined) throw wrong('the field', extra, 'only dtype, shape and data_offsets');
  if (typeof dtype !== 'string') throw wrong('dtype', dtype, 'a string');
  if (!isDtype(dtype)) {
    const allowed = Object.keys(DTYPE_BYTES);
    throw unsupported(
      file,
      `tensor ${shown(name)} has dtype ${shown(dtype)}; known are ${allowed.join(', ')}`,
      {
        tensor: name,
        found: shown(dtype),
        allowed,
      },
    );
  }
  if (!isCounts(shape)) throw wrong('shape', shape, 'an array of non-negative integers below 2^53');
  const byteLength = product(shape, DTYPE_BYTES[dtype]);
  if (byteLength === undefined) throw wrong('shape', shape, 'fewer than 2^53 bytes');
  if (!isCounts(offsets) || offsets.length !== 2) {
    throw wrong('data_offsets', offsets, 'two non-negative integers below 2^53');
  }
  const [begin, end] = offsets as [number, number];
  const available = size - dataBegin;
  if (begin > end || end > available) {
    throw wrong('data_offsets', offsets, `begin <= end <= ${available}, the bytes after the header`);
  }
  if (end - begin !== byteLength) {
    throw wrong('data_offsets', offsets, `${byteLength} bytes, the size of ${dtype} [${shape.join(', ')}]`);
  }
  return Object.freeze({
    name,
    dtype,
    shape: Object.freeze(shape),
    file,
    offset: dataBegin + begin,
    byteLength,
  });
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((count) => Number.isSafeInteger(count) && count >= 0);
}

/** `first` times all of `counts`; undefined when that, or a product on the way to it, is not exact. */
function product(counts: readonly number[], first: number): number | undefined {
  let result = first;
  for (const count of counts) {
    result *= count;
    if (!Number.isSafeInteger(result)) return undefined;
  }
  return result;
}

function checkCoverage(file: string, tensors: TensorInfo[], dataBegin: number, size: number): void {
  tensors.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let covered = dataBegin;
  let previous = 'the header';
  for (const { name, offset, byteLength } of tensors) {
    if (offset !== covered) {
      const fault = offset < covered ? 'overlaps' : 'leaves a hole after';
      throw invalid(
        file,
        `tensor ${shown(name)} ${fault} ${previous}: it begins at byte ${offset}, expected ${covered}`,
        { tensor: name, found: offset, expected: covered },
      );
    }
    covered = offset + byteLength;
    previous = `tensor ${shown(name)}`;
  }
  if (covered !== size) {
    throw invalid(file, `holds ${size} bytes; its header accounts for ${covered}`, {
      found: size,
      expected: covered,
    });
  }
}
