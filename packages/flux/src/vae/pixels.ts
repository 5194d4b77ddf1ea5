/** image [3, height, width] in -1..1 -> RGB bytes [height, width, 3], rounded half to even as numpy does. */
export function toRgb8(image: Float32Array, width: number, height: number): Uint8Array {
  const plane = width * height;
  const out = new Uint8Array(plane * 3);
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < plane; i++) {
      const unit = Math.min(Math.max(Math.fround(image[c * plane + i]! / 2 + 0.5), 0), 1);
      out[i * 3 + c] = roundHalfEven(Math.fround(unit * 255));
    }
  return out;
}

/** RGB bytes [height, width, 3] -> image [3, height, width] in -1..1. */
export function fromRgb8(pixels: Uint8Array, width: number, height: number): Float32Array {
  const plane = width * height;
  const out = new Float32Array(plane * 3);
  for (let c = 0; c < 3; c++)
    for (let i = 0; i < plane; i++) out[c * plane + i] = Math.fround(pixels[i * 3 + c]! / 255) * 2 - 1;
  return out;
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}
