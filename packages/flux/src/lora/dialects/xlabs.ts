import { ModuleNames } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

const DOUBLE = 'transformer_blocks.#';
const SINGLE = 'single_transformer_blocks.#';

/** Attention processors; 1 is the stream of the image, 2 that of the text. `qkv_lora` leaves linear1's MLP alone. */
const PROCESSORS = new ModuleNames('transformer', [
  [
    'double_blocks.#.processor.qkv_lora1',
    `${DOUBLE}.attn.to_q`,
    `${DOUBLE}.attn.to_k`,
    `${DOUBLE}.attn.to_v`,
  ],
  [
    'double_blocks.#.processor.qkv_lora2',
    `${DOUBLE}.attn.add_q_proj`,
    `${DOUBLE}.attn.add_k_proj`,
    `${DOUBLE}.attn.add_v_proj`,
  ],
  ['double_blocks.#.processor.proj_lora1', `${DOUBLE}.attn.to_out.0`],
  ['double_blocks.#.processor.proj_lora2', `${DOUBLE}.attn.to_add_out`],
  ['single_blocks.#.processor.qkv_lora', `${SINGLE}.attn.to_q`, `${SINGLE}.attn.to_k`, `${SINGLE}.attn.to_v`],
  ['single_blocks.#.processor.proj_lora', `${SINGLE}.proj_out`],
]);

/** XLabs' trainer, whose LoRAs are attention processors. */
export const xlabs: Dialect = {
  name: 'xlabs',
  forms: [
    { prefix: '', names: PROCESSORS, separator: '.' },
    { prefix: 'diffusion_model.', names: PROCESSORS, separator: '.' },
  ],
};
