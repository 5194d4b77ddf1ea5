import type { Lora, LoraDelta, ModuleShapes } from '@atelier/flux/lora';

/** A LoRA of random values on every module of `shapes` that `wanted` accepts. */
export function randomLora(shapes: ModuleShapes, rank: number, wanted: (module: string) => boolean): Lora {
  const transformer = new Map<string, LoraDelta>();
  let byteLength = 0;
  for (const [module, [outFeatures, inFeatures]] of shapes) {
    if (!wanted(module)) continue;
    const down = noise(rank * inFeatures, 0.02);
    const up = noise(outFeatures * rank, 0.02);
    byteLength += down.byteLength + up.byteLength;
    transformer.set(module, { module, rank, inFeatures, outFeatures, down, up });
  }
  return { transformer, clip: new Map(), dialects: ['peft'], warnings: [], byteLength };
}

/** The linear modules of FLUX.1-dev's blocks, without modulations: what LoRAs of rank 16 in the wild train. */
export function fluxDevShapes(): ModuleShapes {
  const [hidden, mlp] = [3072, 12288];
  const shapes = new Map<string, readonly [number, number]>();
  for (let i = 0; i < 19; i++) {
    const path = `transformer_blocks.${i}`;
    for (const name of [
      'to_q',
      'to_k',
      'to_v',
      'to_out.0',
      'add_q_proj',
      'add_k_proj',
      'add_v_proj',
      'to_add_out',
    ])
      shapes.set(`${path}.attn.${name}`, [hidden, hidden]);
    for (const name of ['ff', 'ff_context']) {
      shapes.set(`${path}.${name}.net.0.proj`, [mlp, hidden]);
      shapes.set(`${path}.${name}.net.2`, [hidden, mlp]);
    }
  }
  for (let i = 0; i < 38; i++) {
    const path = `single_transformer_blocks.${i}`;
    for (const name of ['to_q', 'to_k', 'to_v']) shapes.set(`${path}.attn.${name}`, [hidden, hidden]);
    shapes.set(`${path}.proj_mlp`, [mlp, hidden]);
    shapes.set(`${path}.proj_out`, [hidden, hidden + mlp]);
  }
  return shapes;
}

function noise(count: number, scale: number): Float32Array {
  return Float32Array.from({ length: count }, () => (Math.random() - 0.5) * scale);
}
