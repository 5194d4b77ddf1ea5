import { BFL, DIFFUSERS } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

/** LyCORIS on a bare model: SimpleTuner has it wrap diffusers' transformer. */
export const lycoris: Dialect = {
  name: 'lycoris',
  forms: [
    { prefix: 'lycoris_', names: DIFFUSERS, separator: '_' },
    { prefix: 'lycoris_', names: DIFFUSERS, separator: '.' },
    { prefix: 'lycoris_', names: BFL, separator: '_' },
  ],
};
