import { createHash } from 'node:crypto';
import { TorchGenerator } from '../sampling/random.ts';

/**
 * A random stream that depends on nothing but the run's seed and what it is for. A training draws each number from
 * such a stream instead of from one generator, so it can go on anywhere without any generator state being stored.
 */
export function stream(seed: number, purpose: string, ...position: number[]): TorchGenerator {
  const digest = createHash('sha256')
    .update(JSON.stringify([seed, purpose, ...position]))
    .digest();
  return new TorchGenerator(digest.readUInt32LE(0));
}

/** The numbers 0 to count - 1 in random order (Fisher and Yates). */
export function shuffled(count: number, generator: TorchGenerator): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(generator.uniform() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
