/** Pixels of a latent that one image token holds, per side (`2x2` patches of the reference implementation). */
export const PATCH = 2;

export interface LatentSize {
  channels: number;
  height: number;
  width: number;
}

/** Latents [channels, height, width] -> tokens [height/2 * width/2, channels * 4], as `_pack_latents` of diffusers. */
export function packLatents(latents: Float32Array, size: LatentSize): Float32Array {
  const out = new Float32Array(latents.length);
  eachElement(size, (latent, token) => (out[token] = latents[latent]!));
  return out;
}

/** The inverse of {@link packLatents}. */
export function unpackLatents(tokens: Float32Array, size: LatentSize): Float32Array {
  const out = new Float32Array(tokens.length);
  eachElement(size, (latent, token) => (out[latent] = tokens[token]!));
  return out;
}

function eachElement(
  { channels, height, width }: LatentSize,
  visit: (latent: number, token: number) => void,
): void {
  const columns = width / PATCH;
  const tokenWidth = channels * PATCH * PATCH;
  for (let c = 0, latent = 0; c < channels; c++) {
    for (let y = 0; y < height; y++) {
      const row = (y >> 1) * columns;
      const inner = c * PATCH * PATCH + (y & 1) * PATCH;
      for (let x = 0; x < width; x++, latent++)
        visit(latent, (row + (x >> 1)) * tokenWidth + inner + (x & 1));
    }
  }
}

/** Latents of an image at noise level sigma: sigma * noise + (1 - sigma) * image (`scale_noise` of diffusers). */
export function addNoise(image: Float32Array, noise: Float32Array, sigma: number): Float32Array {
  const rest = Math.fround(1 - sigma);
  return image.map((value, i) => Math.fround(sigma * noise[i]!) + Math.fround(rest * value));
}
