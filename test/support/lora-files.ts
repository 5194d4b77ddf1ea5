import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TensorEntry, writeSafetensors } from '../../packages/flux/src/checkpoint/safetensors-writer.ts';

/** A linear module of the bundled model: [outFeatures, inFeatures]. */
export const MINI_MODULE = 'transformer_blocks.0.attn.to_q';

export interface SmallLora {
  /** Another number, other bytes. */
  seed?: number;
  rank?: number;
  /** Input features that the file claims; those of the bundled model when absent. */
  features?: number;
  /** Of the change, 1 for one that hardly shows. */
  scale?: number;
}

/** Sides of {@link MINI_MODULE}, from the bundled model's own config. */
async function hiddenSize(): Promise<number> {
  const path = join(import.meta.dirname, '../../models/mini/transformer_config.json');
  const config = JSON.parse(await readFile(path, 'utf8')) as {
    attention_head_dim: number;
    num_attention_heads: number;
  };
  return config.attention_head_dim * config.num_attention_heads;
}

/** Writes a small PEFT file that changes one module of the bundled model. */
export async function writeSmallLora(path: string, options: SmallLora = {}): Promise<string> {
  const { seed = 1, rank = 2, scale = 1 } = options;
  const hidden = await hiddenSize();
  const features = options.features ?? hidden;
  const entry = (name: string, rows: number, columns: number): TensorEntry => {
    const values = Float32Array.from(
      { length: rows * columns },
      (_, i) => (Math.sin(i * (1 + seed / 7)) / 50) * scale,
    );
    return { name, dtype: 'F32', shape: [rows, columns], data: new Uint8Array(values.buffer) };
  };
  await writeSafetensors(path, [
    entry(`transformer.${MINI_MODULE}.lora_A.weight`, rank, features),
    entry(`transformer.${MINI_MODULE}.lora_B.weight`, hidden, rank),
  ]);
  return path;
}
