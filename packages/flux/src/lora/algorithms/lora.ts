import { requireFactor, sharedRank, type Algorithm } from './algorithm.ts';

/** up · down · alpha / rank. */
export const lora: Algorithm = (factors) => {
  const down = requireFactor(factors, 'down');
  const up = requireFactor(factors, 'up');
  const rank = sharedRank(factors.file, up, down);
  return {
    rank,
    inFeatures: down.shape[1]!,
    outFeatures: up.shape[0]!,
    alphaRank: rank,
    build: async (read) => ({ down: await read(down), up: await read(up) }),
  };
};
