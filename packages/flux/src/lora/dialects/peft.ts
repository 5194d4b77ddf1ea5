import { CLIP, CLIP_WITHOUT_ROOT, DIFFUSERS, T5 } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

/**
 * diffusers and PEFT: paths of diffusers, behind the name of the pipeline's part or bare. ai-toolkit and SimpleTuner
 * write these too.
 */
export const peft: Dialect = {
  name: 'peft',
  forms: [
    { prefix: 'transformer.', names: DIFFUSERS, separator: '.' },
    { prefix: 'text_encoder.', names: CLIP, separator: '.' },
    { prefix: 'text_encoder.', names: CLIP_WITHOUT_ROOT, separator: '.' },
    { prefix: 'text_encoder_2.', names: T5, separator: '.' },
    { prefix: 'base_model.model.', names: DIFFUSERS, separator: '.' },
    { prefix: '', names: DIFFUSERS, separator: '.' },
  ],
};
