import { DIFFUSERS, T5 } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

/** OneTrainer: paths of diffusers with underscores. Its `lora_te1_` keys are those of kohya. */
export const onetrainer: Dialect = {
  name: 'onetrainer',
  forms: [
    { prefix: 'lora_transformer_', names: DIFFUSERS, separator: '_' },
    { prefix: 'lora_te2_', names: T5, separator: '_' },
  ],
};
