import type { Lora, LoraDelta } from '../lora/types.ts';
import type { Moments } from './adamw.ts';
import type { LoraParameter } from './gradients.ts';
import { stream } from './streams.ts';
import type { TargetModule } from './targets.ts';

/** A trained module with its optimizer state. */
export interface TrainedModule extends LoraParameter {
  moments: { down: Moments; up: Moments };
}

/**
 * LoRA matrices as peft starts them: `down` uniform in ±1 / √in (Kaiming with a = √5), `up` zero, so that the first
 * step starts from the base model itself.
 */
export function initialModules(
  targets: readonly TargetModule[],
  rank: number,
  alpha: number,
  seed: number,
): TrainedModule[] {
  return targets.map((target, index) => {
    const { inFeatures, outFeatures } = target;
    const generator = stream(seed, 'initial weights', index);
    const bound = 1 / Math.sqrt(inFeatures);
    const down = Float32Array.from(
      { length: rank * inFeatures },
      () => (2 * generator.uniform() - 1) * bound,
    );
    return trainedModule(target, rank, alpha / rank, down, new Float32Array(outFeatures * rank));
  });
}

export function trainedModule(
  target: TargetModule,
  rank: number,
  scale: number,
  down: Float32Array,
  up: Float32Array,
): TrainedModule {
  const moments = (like: Float32Array): Moments => ({
    first: new Float32Array(like.length),
    second: new Float32Array(like.length),
  });
  return {
    ...target,
    rank,
    scale,
    down,
    up,
    downGradient: new Float32Array(down.length),
    upGradient: new Float32Array(up.length),
    moments: { down: moments(down), up: moments(up) },
  };
}

/** The modules as a LoRA in canonical form. */
export function asLora(modules: readonly LoraParameter[]): Lora {
  const transformer = new Map<string, LoraDelta>();
  let byteLength = 0;
  for (const { module, rank, inFeatures, outFeatures, down, up, scale } of modules) {
    byteLength += down.byteLength + up.byteLength;
    transformer.set(module, {
      module,
      rank,
      inFeatures,
      outFeatures,
      down,
      up: up.map((value) => value * scale),
    });
  }
  return { transformer, clip: new Map(), dialects: ['peft'], warnings: [], byteLength };
}
