/** Base of the geometric frequency ladder (`max_period` of the reference implementation). */
const MAX_PERIOD = 10_000;

/**
 * Sinusoidal embedding of timesteps, cosines first: [values.length, width].
 * Source: `get_timestep_embedding(flip_sin_to_cos=True, downscale_freq_shift=0)` of diffusers. Every intermediate
 * is rounded to fp32 as there: at t = 1000 an angle has only 14 fractional bits, and float64 would be another number.
 *
 * @param values sigma (0..1) or guidance; multiplied by 1000 here, as inside the transformer
 */
export function timestepEmbedding(values: Float32Array, width: number): Float32Array {
  const half = width / 2;
  const ladder = Math.fround(-Math.log(MAX_PERIOD));
  const out = new Float32Array(values.length * width);
  values.forEach((value, row) => {
    const t = Math.fround(value * 1000);
    for (let i = 0; i < half; i++) {
      const frequency = Math.fround(Math.exp(Math.fround(Math.fround(ladder * i) / half)));
      const angle = Math.fround(t * frequency);
      out[row * width + i] = Math.cos(angle);
      out[row * width + half + i] = Math.sin(angle);
    }
  });
  return out;
}
