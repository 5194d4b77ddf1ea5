import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { decodeFloat32, decodeTable, encodeFloat32, type FloatDtype } from './dtypes.ts';

const GOLDEN = join(import.meta.dirname, '../../../../test/golden/fixtures/numerics/fp8_e4m3fn.json');

/** V8's own rounding to fp16, which TypeScript's es2024 library does not declare. */
const { f16round } = Math as unknown as { f16round: (value: number) => number };

const allCodes16 = Uint16Array.from({ length: 65536 }, (_, code) => code);
const bytesOf = (values: ArrayBufferView) =>
  new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
const isNaNCode = (code: number, exponentMask: number, mantissaMask: number) =>
  (code & exponentMask) === exponentMask && (code & mantissaMask) !== 0;

/** Seeded fp32 bit patterns of every exponent, NaN and infinity among them. */
function anyFloats(count: number): Float32Array {
  const bits = new Uint32Array(count);
  let state = 1;
  for (let i = 0; i < count; i++) bits[i] = state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return new Float32Array(bits.buffer);
}

describe('float8_e4m3fn', () => {
  test('decodes every code and rounds as torch does', async () => {
    const golden = JSON.parse(await readFile(GOLDEN, 'utf8')) as {
      decode: (number | null)[];
      encode: [number | string, number][];
    };
    const codes = Uint8Array.from({ length: 256 }, (_, code) => code);
    const decoded = decodeFloat32('F8_E4M3', codes);
    expect([...decoded]).toEqual(golden.decode.map((value) => value ?? Number.NaN));
    const encoded = encodeFloat32(
      'F8_E4M3',
      Float32Array.from(golden.encode, ([value]) => Number(value)),
    );
    const wrong = golden.encode.filter(([, code], i) => encoded[i] !== code);
    expect(golden.encode.length).toBeGreaterThan(2000);
    expect(wrong).toEqual([]);
  });

  test('every finite code survives decoding and encoding', () => {
    const finite = Uint8Array.from({ length: 254 }, (_, i) => (i < 127 ? i : i + 1));
    expect(encodeFloat32('F8_E4M3', decodeFloat32('F8_E4M3', finite))).toEqual(finite);
  });
});

test('float8_e5m2 is the upper byte of fp16', () => {
  const upper = Uint16Array.from({ length: 256 }, (_, code) => code << 8);
  const codes = Uint8Array.from({ length: 256 }, (_, code) => code);
  expect(decodeFloat32('F8_E5M2', codes)).toEqual(decodeFloat32('F16', bytesOf(upper)));
});

describe('fp16', () => {
  test('every code decodes to itself and back; subnormals, infinities and the largest value', () => {
    const decoded = decodeFloat32('F16', bytesOf(allCodes16));
    const encoded = new Uint16Array(encodeFloat32('F16', decoded).buffer);
    const wrong = [...allCodes16].filter((code) => encoded[code] !== code && !isNaNCode(code, 0x7c00, 0x3ff));
    expect(wrong).toEqual([]);
    expect([
      decoded[0x0001],
      decoded[0x0400],
      decoded[0x3c00],
      decoded[0x7bff],
      decoded[0x7c00],
      decoded[0xfc00],
    ]).toEqual([2 ** -24, 2 ** -14, 1, 65504, Infinity, -Infinity]);
    expect(decoded[0x7c01]).toBeNaN();
  });

  test('rounds as V8 does, ties and overflow included', () => {
    const ties = Float32Array.from({ length: 31742 }, (_, code) => {
      const table = decodeTable('F16');
      return (table[code]! + table[code + 1]!) / 2;
    });
    for (const values of [
      anyFloats(200_000),
      ties,
      Float32Array.of(65519.996, 65520, 2 ** -25, -(2 ** -25) * 1.0001),
    ]) {
      const rounded = decodeFloat32('F16', encodeFloat32('F16', values));
      expect(rounded).toEqual(values.map((value) => f16round(value)));
    }
  });
});

describe('bf16', () => {
  test('decodes to the upper half of an fp32', () => {
    const decoded = decodeFloat32('BF16', bytesOf(allCodes16));
    expect(new Uint32Array(decoded.buffer)).toEqual(Uint32Array.from(allCodes16, (code) => code * 65536));
    expect(new Uint32Array(decodeTable('BF16').buffer)[0x3f80]).toBe(0x3f800000);
  });

  test('rounds to the nearest code, ties to the even one', () => {
    const bits = Uint32Array.of(
      0x3f808000,
      0x3f818000,
      0x3f808001,
      0xbf807fff,
      0x7f7fffff,
      0xff800000,
      0xffffffff,
    );
    const codes = new Uint16Array(encodeFloat32('BF16', new Float32Array(bits.buffer)).buffer);
    expect([...codes.subarray(0, 6)]).toEqual([0x3f80, 0x3f82, 0x3f81, 0xbf80, 0x7f80, 0xff80]);
    expect(decodeFloat32('BF16', bytesOf(codes.subarray(6)))[0]).toBeNaN();
  });
});

test.each<[FloatDtype, number[], number[]]>([
  ['F8_E4M3', [0x38, 0xb8], [0.5, -0.5]],
  ['F8_E5M2', [0x3c, 0xbc], [0.5, -0.5]],
  ['F16', [0, 0x3c, 0, 0xbc], [0.5, -0.5]],
  ['BF16', [0x80, 0x3f, 0x80, 0xbf], [0.5, -0.5]],
  ['F32', [0, 0, 0x80, 0x3f, 0, 0, 0x80, 0xbf], [0.5, -0.5]],
  ['F64', [0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0xf0, 0xbf], [0.5, -0.5]],
])('%s is scaled, from any alignment and into a given array', (dtype, bytes, expected) => {
  for (const shift of [0, 1, 2, 3]) {
    const shifted = Uint8Array.from([...Array.from({ length: shift }, () => 0xff), ...bytes]).subarray(shift);
    const out = new Float32Array(2);
    expect(decodeFloat32(dtype, shifted, 0.5, out)).toBe(out);
    expect([...out]).toEqual(expected);
  }
});

test('bytes that end inside an element, and an array of another length, are refused', () => {
  expect(() => decodeFloat32('F16', new Uint8Array(3))).toThrow(RangeError);
  expect(() => decodeFloat32('F32', new Uint8Array(8), 1, new Float32Array(3))).toThrow(
    '2 elements do not fit an array of 3',
  );
});
