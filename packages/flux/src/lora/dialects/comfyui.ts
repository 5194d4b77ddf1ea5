import { BFL, CLIP, DIFFUSERS, T5 } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

/** ComfyUI: paths of its own model, which are those of Black Forest Labs; some trainers put diffusers' there. */
export const comfyui: Dialect = {
  name: 'comfyui',
  forms: [
    { prefix: 'diffusion_model.', names: BFL, separator: '.' },
    { prefix: 'diffusion_model.', names: DIFFUSERS, separator: '.' },
    { prefix: 'text_encoders.clip_l.transformer.', names: CLIP, separator: '.' },
    { prefix: 'text_encoders.t5xxl.transformer.', names: T5, separator: '.' },
  ],
};
