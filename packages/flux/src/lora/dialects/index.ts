import { bfl } from './bfl.ts';
import { comfyui } from './comfyui.ts';
import type { Dialect, Located } from './dialect.ts';
import { kohya } from './kohya.ts';
import { lycoris } from './lycoris.ts';
import { onetrainer } from './onetrainer.ts';
import { peft } from './peft.ts';
import { xlabs } from './xlabs.ts';

export type { Located } from './dialect.ts';

/** No key belongs to two of them. */
export const DIALECTS: readonly Dialect[] = Object.freeze([
  peft,
  kohya,
  comfyui,
  onetrainer,
  xlabs,
  bfl,
  lycoris,
]);

/** @param stem a key without its last part */
export function locate(stem: string): Located | undefined {
  for (const { name, forms } of DIALECTS) {
    for (const { prefix, names, separator } of forms) {
      if (!stem.startsWith(prefix)) continue;
      const path = stem.slice(prefix.length);
      const place = names.find(path, separator);
      if (place) return { dialect: name, prefix, path, place };
    }
  }
  return undefined;
}
