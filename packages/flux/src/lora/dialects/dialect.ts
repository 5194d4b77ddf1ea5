import type { Names, Place } from '../module-table.ts';

/** Keys that begin with `prefix` and go on with a path of `names`. */
export interface Form {
  readonly prefix: string;
  readonly names: Names;
  /** What the path is joined with. */
  readonly separator: '.' | '_';
}

/** How one family of LoRA files names modules. */
export interface Dialect {
  readonly name: string;
  readonly forms: readonly Form[];
}

/** What a key without its last part, which says what the tensor is to the module, was found to name. */
export interface Located {
  readonly dialect: string;
  readonly prefix: string;
  /** After the prefix. */
  readonly path: string;
  readonly place: Place;
}
