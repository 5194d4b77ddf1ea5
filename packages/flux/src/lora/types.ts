/**
 * The change of one linear module in canonical form: W + up · down. Everything that a file says about strength
 * (alpha / rank, a scale, LoHa's and LoKr's products) is in `up` already; a style's weight is not.
 */
export interface LoraDelta {
  /** Canonical path of the module, as the weights of the checkpoint are named without `.weight`. */
  readonly module: string;
  readonly rank: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** [rank, inFeatures], often called A. */
  readonly down: Float32Array;
  /** [outFeatures, rank], often called B. */
  readonly up: Float32Array;
}

/** A LoRA file read into canonical form. */
export interface Lora {
  readonly transformer: ReadonlyMap<string, LoraDelta>;
  /** CLIP's part; canonical paths start with `text_model.`. */
  readonly clip: ReadonlyMap<string, LoraDelta>;
  /** What kind of file it was, e.g. `peft`, `kohya`; several when a file mixes them. */
  readonly dialects: readonly string[];
  /** What was left out without harm, one sentence each. */
  readonly warnings: readonly string[];
  /** Bytes of all matrices. */
  readonly byteLength: number;
}

/** Shapes of the modules that a LoRA may change: [outFeatures, inFeatures] by canonical path. */
export type ModuleShapes = ReadonlyMap<string, readonly [outFeatures: number, inFeatures: number]>;

export interface LoraTarget {
  readonly transformer: ModuleShapes;
  readonly clip: ModuleShapes;
}

/** A style of a job: a LoRA file and how strongly it acts. */
export interface Style {
  /** Absolute path of the file. */
  readonly file: string;
  /** Names the file's content, e.g. name@version and ETag; equal keys are read once. */
  readonly key: string;
  /** Factor on the LoRA's change; may be negative. */
  readonly weight: number;
}
