import { BFL } from '../module-table.ts';
import type { Dialect } from './dialect.ts';

/** Black Forest Labs' own paths, bare or as PEFT wraps them. Their control LoRAs, which also widen img_in, are none. */
export const bfl: Dialect = {
  name: 'bfl',
  forms: [
    { prefix: '', names: BFL, separator: '.' },
    { prefix: 'base_model.model.', names: BFL, separator: '.' },
  ],
};
