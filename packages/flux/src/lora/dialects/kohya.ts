import { BFL, CLIP, T5 } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

/** kohya sd-scripts: paths of Black Forest Labs with underscores. */
export const kohya: Dialect = {
  name: 'kohya',
  forms: [
    { prefix: 'lora_unet_', names: BFL, separator: '_' },
    { prefix: 'lora_te1_', names: CLIP, separator: '_' },
    { prefix: 'lora_te_', names: CLIP, separator: '_' },
    { prefix: 'lora_te3_', names: T5, separator: '_' },
  ],
};
