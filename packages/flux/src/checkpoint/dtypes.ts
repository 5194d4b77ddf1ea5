import { FluxError } from '../errors.ts';

/**
 * Bytes per element of the dtypes of the safetensors format that fill whole bytes, in the order in which the
 * reference implementation sorts them.
 */
export const DTYPE_BYTES = Object.freeze({
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  F8_E8M0: 1,
  F8_E4M3FNUZ: 1,
  F8_E5M2FNUZ: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  C64: 8,
  F64: 8,
  I64: 8,
  U64: 8,
});

/** A dtype as a safetensors header spells it. */
export type Dtype = keyof typeof DTYPE_BYTES;

/** The dtypes in which weights are accepted. F8_E4M3 is torch's float8_e4m3fn: no infinities, largest value 448. */
export const FLOAT_DTYPES = Object.freeze(['F64', 'F32', 'F16', 'BF16', 'F8_E4M3', 'F8_E5M2'] as const);
export type FloatDtype = (typeof FLOAT_DTYPES)[number];

/** The dtypes in which weights are written. */
export type EncodedDtype = 'F32' | 'F16' | 'BF16' | 'F8_E4M3';

export function isDtype(value: unknown): value is Dtype {
  return typeof value === 'string' && Object.hasOwn(DTYPE_BYTES, value);
}

export function isFloatDtype(dtype: string): dtype is FloatDtype {
  return (FLOAT_DTYPES as readonly string[]).includes(dtype);
}

const scratch = new DataView(new ArrayBuffer(4));

function floatOf(bits: number): number {
  scratch.setUint32(0, bits);
  return scratch.getFloat32(0);
}

function bitsOf(value: number): number {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

/** Value of an IEEE-like code of `exponentBits` and `mantissaBits` below one sign bit, subnormals included. */
function decodeSmallFloat(code: number, exponentBits: number, mantissaBits: number): number {
  const bias = 2 ** (exponentBits - 1) - 1;
  const sign = code >> (exponentBits + mantissaBits) ? -1 : 1;
  const exponent = (code >> mantissaBits) & (2 ** exponentBits - 1);
  const mantissa = (code & (2 ** mantissaBits - 1)) / 2 ** mantissaBits;
  return sign * (exponent === 0 ? mantissa * 2 ** (1 - bias) : (1 + mantissa) * 2 ** (exponent - bias));
}

/** As decodeSmallFloat for a format whose largest exponent means infinity (mantissa 0) or NaN. */
function decodeIeee(code: number, exponentBits: number, mantissaBits: number): number {
  const special = 2 ** exponentBits - 1;
  if (((code >> mantissaBits) & special) !== special)
    return decodeSmallFloat(code, exponentBits, mantissaBits);
  if (code & (2 ** mantissaBits - 1)) return Number.NaN;
  return code >> (exponentBits + mantissaBits) ? -Infinity : Infinity;
}

const DECODE = Object.freeze({
  F8_E4M3: (code: number) => ((code & 0x7f) === 0x7f ? Number.NaN : decodeSmallFloat(code, 4, 3)),
  F8_E5M2: (code: number) => decodeIeee(code, 5, 2),
  F16: (code: number) => decodeIeee(code, 5, 10),
  BF16: (code: number) => floatOf(code * 0x10000),
});

type NarrowDtype = keyof typeof DECODE;

const tables = new Map<NarrowDtype, Float32Array>();

/** The value of every code of a dtype of one or two bytes; made once. */
export function decodeTable(dtype: NarrowDtype): Float32Array {
  let table = tables.get(dtype);
  if (!table) {
    table = Float32Array.from({ length: 256 ** DTYPE_BYTES[dtype] }, (_, code) => DECODE[dtype](code));
    tables.set(dtype, table);
  }
  return table;
}

/** `bytes` as 16-, 32- or 64-bit elements; copied only when they do not start on an element. */
function elements<T>(
  bytes: Uint8Array,
  Type: { new (buffer: ArrayBufferLike, offset: number, length: number): T; BYTES_PER_ELEMENT: number },
): T {
  const size = Type.BYTES_PER_ELEMENT;
  if (bytes.byteLength % size !== 0) {
    throw new RangeError(`${bytes.byteLength} bytes are not a whole number of ${size}-byte elements`);
  }
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  return new Type(aligned.buffer, aligned.byteOffset, aligned.byteLength / size);
}

/**
 * Decodes little-endian elements of `dtype` to fp32, each multiplied by `scale`. F64 is rounded to nearest.
 *
 * @param out where to write; its length must be the number of elements
 */
export function decodeFloat32(
  dtype: FloatDtype,
  bytes: Uint8Array,
  scale = 1,
  out: Float32Array = new Float32Array(bytes.byteLength / DTYPE_BYTES[dtype]),
): Float32Array {
  const count = bytes.byteLength / DTYPE_BYTES[dtype];
  if (out.length !== count) throw new RangeError(`${count} elements do not fit an array of ${out.length}`);
  switch (dtype) {
    case 'F64':
      out.set(elements(bytes, Float64Array));
      break;
    case 'F32':
      out.set(elements(bytes, Float32Array));
      break;
    case 'BF16': {
      // Shifting whole bit patterns beats a table of 256 KiB, and keeps NaN payloads.
      const codes = elements(bytes, Uint16Array);
      const bits = new Uint32Array(out.buffer, out.byteOffset, count);
      for (let i = 0; i < count; i++) bits[i] = codes[i]! << 16;
      break;
    }
    case 'F16':
    case 'F8_E4M3':
    case 'F8_E5M2': {
      const codes = dtype === 'F16' ? elements(bytes, Uint16Array) : bytes;
      const table = decodeTable(dtype);
      for (let i = 0; i < count; i++) out[i] = table[codes[i]!]!;
      break;
    }
    default:
      throw unsupportedDtype(dtype satisfies never, FLOAT_DTYPES);
  }
  if (scale !== 1) for (let i = 0; i < count; i++) out[i] = out[i]! * scale;
  return out;
}

function unsupportedDtype(dtype: string, allowed: readonly string[]): FluxError {
  return new FluxError('checkpoint_unsupported', `dtype ${dtype}; allowed are ${allowed.join(', ')}`, {
    details: { found: dtype, allowed },
  });
}

/** Bits of an fp32 value -> fp16 bits, round to nearest even, overflow to infinity. */
function float16Bits(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x47800000) return sign | 0x7c00;
  // Below 2^-14 the result is subnormal: adding 0.5 makes the addition itself round at fp16's last place, 2^-24.
  if (magnitude < 0x38800000) return sign | (bitsOf(floatOf(magnitude) + 0.5) - 0x3f000000);
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

/** Bits of an fp32 value -> bf16 bits, round to nearest even. */
function bfloat16Bits(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  // The sum may pass 2^32 for a negative value; >>> takes it back into range with the sign intact.
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/**
 * Bits of an fp32 value -> float8_e4m3fn as `tensor.to(torch.float8_e4m3fn)` does: round to nearest even; what
 * lies beyond 448, infinities included, saturates.
 */
function float8E4m3Bits(bits: number): number {
  const sign = (bits >>> 24) & 0x80;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7f;
  if (magnitude >= 0x43e00000) return sign | 0x7e;
  // Below 2^-6 the result is subnormal: adding 2^14 makes the addition itself round at the last place, 2^-9.
  if (magnitude < 0x3c800000) return sign | (bitsOf(floatOf(magnitude) + 16384) - 0x46800000);
  return sign | ((magnitude - 0x3c000000 + 0x7ffff + ((magnitude >>> 20) & 1)) >>> 20);
}

/** Encodes fp32 values as little-endian elements of `dtype`, rounding to nearest even. */
export function encodeFloat32(dtype: EncodedDtype, values: Float32Array): Uint8Array {
  const count = values.length;
  const bits = new Uint32Array(values.buffer, values.byteOffset, count);
  switch (dtype) {
    case 'F32':
      return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    case 'F16': {
      const out = new Uint16Array(count);
      for (let i = 0; i < count; i++) out[i] = float16Bits(bits[i]!);
      return new Uint8Array(out.buffer);
    }
    case 'BF16': {
      const out = new Uint16Array(count);
      for (let i = 0; i < count; i++) out[i] = bfloat16Bits(bits[i]!);
      return new Uint8Array(out.buffer);
    }
    case 'F8_E4M3': {
      const out = new Uint8Array(count);
      for (let i = 0; i < count; i++) out[i] = float8E4m3Bits(bits[i]!);
      return out;
    }
    default:
      throw unsupportedDtype(dtype satisfies never, ['F32', 'F16', 'BF16', 'F8_E4M3']);
  }
}

const castTables = new Map<string, Uint8Array>();

/** Casts fp16 or bf16 elements to float8_e4m3fn, one table look-up each; equal to decoding and encoding them. */
export function castToFloat8E4m3(dtype: 'F16' | 'BF16', bytes: Uint8Array, out: Uint8Array): void {
  let table = castTables.get(dtype);
  if (!table) {
    table = encodeFloat32('F8_E4M3', decodeTable(dtype));
    castTables.set(dtype, table);
  }
  const codes = elements(bytes, Uint16Array);
  for (let i = 0; i < codes.length; i++) out[i] = table[codes[i]!]!;
}
