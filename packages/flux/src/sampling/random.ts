const STATE_SIZE = 624;
const MIDDLE = 397;
const TWO_PI = Math.fround(2 * Math.PI);

/**
 * torch's CPU generator: mt19937, and the normal distribution that `torch.randn` draws from it in fp32. A seed gives
 * the noise that diffusers and ComfyUI start from, up to the last bits of log and cos.
 * Source: ATen's `MT19937RNGEngine` and `normal_fill` (DistributionTemplates.h).
 */
export class TorchGenerator {
  readonly #state = new Uint32Array(STATE_SIZE);
  #index = STATE_SIZE;
  /** Second normal of a Box-Muller pair, kept for the next draw of fewer than 16 numbers as torch keeps it. */
  #spare: number | null = null;

  /** @param seed 0 to 2^53 - 1; like torch's engine, only its low 32 bits count */
  constructor(seed: number) {
    let value = Number(BigInt.asUintN(32, BigInt(seed)));
    this.#state[0] = value;
    for (let i = 1; i < STATE_SIZE; i++) {
      value = (Math.imul(value ^ (value >>> 30), 1_812_433_253) + i) >>> 0;
      this.#state[i] = value;
    }
  }

  /** `torch.randn(size, generator=self)`, flattened: fp32, mean 0, variance 1. */
  randn(size: number): Float32Array {
    const out = new Float32Array(size);
    if (size < 16) {
      for (let i = 0; i < size; i++) out[i] = this.#normal();
      return out;
    }
    for (let i = 0; i < size; i++) out[i] = this.#uniform24();
    for (let i = 0; i + 16 <= size; i += 16) boxMuller16(out, i);
    if (size % 16 !== 0) {
      // torch draws the last 16 numbers afresh when the size is not a multiple of 16.
      for (let i = size - 16; i < size; i++) out[i] = this.#uniform24();
      boxMuller16(out, size - 16);
    }
    return out;
  }

  /** `torch.rand(1, generator=self)`: uniform in [0, 1). */
  uniform(): number {
    return this.#uniform24();
  }

  #next(): number {
    if (this.#index === STATE_SIZE) this.#twist();
    let y = this.#state[this.#index++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  #twist(): void {
    const state = this.#state;
    for (let i = 0; i < STATE_SIZE; i++) {
      const y = (state[i]! & 0x80000000) | (state[(i + 1) % STATE_SIZE]! & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % STATE_SIZE]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.#index = 0;
  }

  /** Uniform in [0, 1) with the 24 bits that an fp32 mantissa holds. */
  #uniform24(): number {
    return (this.#next() & 0xffffff) / 2 ** 24;
  }

  /** Uniform in [0, 1) with 53 bits; the first number drawn is the high word. */
  #uniform53(): number {
    const high = BigInt(this.#next());
    const bits = BigInt.asUintN(53, (high << 32n) | BigInt(this.#next()));
    return Number(bits) / 2 ** 53;
  }

  /** One normal in float64, the path torch takes for fewer than 16 numbers. */
  #normal(): number {
    if (this.#spare !== null) {
      const spare = this.#spare;
      this.#spare = null;
      return spare;
    }
    const u1 = this.#uniform53();
    const u2 = this.#uniform53();
    const radius = Math.sqrt(-2 * Math.log1p(-u2));
    const theta = 2 * Math.PI * u1;
    this.#spare = radius * Math.sin(theta);
    return radius * Math.cos(theta);
  }
}

/** Turns 16 uniforms at `at` into 16 normals in place; number j pairs with j + 8. */
function boxMuller16(values: Float32Array, at: number): void {
  for (let j = at; j < at + 8; j++) {
    const u1 = 1 - values[j]!;
    const radius = Math.fround(Math.sqrt(Math.fround(-2 * Math.fround(Math.log(u1)))));
    const theta = Math.fround(TWO_PI * values[j + 8]!);
    values[j] = radius * Math.fround(Math.cos(theta));
    values[j + 8] = radius * Math.fround(Math.sin(theta));
  }
}
