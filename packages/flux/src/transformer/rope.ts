import type { TransformerSpec } from '../checkpoint/spec.ts';

/**
 * Cosines and sines of rotary position embedding for the joint sequence: `textTokens` tokens at position (0, 0, 0),
 * then a grid of image tokens at (0, y, x), row by row.
 *
 * @returns cos and sin, each [textTokens + gridHeight * gridWidth, headDim / 2]: the angle of channel pair j of an
 *   axis of width d is position * theta^(-2j / d), computed in float64 as diffusers' `FluxPosEmbed` does on the CPU.
 */
export function ropeTable(
  spec: TransformerSpec,
  textTokens: number,
  gridHeight: number,
  gridWidth: number,
): { cos: Float32Array; sin: Float32Array } {
  const width = spec.headDim / 2;
  const tokens = textTokens + gridHeight * gridWidth;
  const cos = new Float32Array(tokens * width).fill(1, 0, textTokens * width);
  const sin = new Float32Array(tokens * width);
  const frequencies = spec.axesDims.flatMap((dim, axis) =>
    Array.from({ length: dim / 2 }, (_, j) => ({ axis, value: 1 / spec.theta ** ((2 * j) / dim) })),
  );
  let at = textTokens * width;
  for (let y = 0; y < gridHeight; y++) {
    for (let x = 0; x < gridWidth; x++) {
      const position = [0, y, x];
      for (const { axis, value } of frequencies) {
        const angle = position[axis]! * value;
        cos[at] = Math.cos(angle);
        sin[at++] = Math.sin(angle);
      }
    }
  }
  return { cos, sin };
}
