import type { LoraVersion, ModelPaths } from '@atelier/shared';

/** What the process for LoRA files is asked, and what it answers; one request each. */
export type FileRequest =
  /** Whether it is a LoRA, of the model when that has files here. */
  | { task: 'check'; file: string; model: ModelPaths }
  /** The same LoRA in another program's form. */
  | {
      task: 'convert';
      file: string;
      target: string;
      format: 'peft' | 'kohya';
      metadata: Record<string, string>;
    };

export type FileFacts = Pick<LoraVersion, 'dialects' | 'rank' | 'modules' | 'warnings'> & {
  /** Whether the shapes were compared with the model's. */
  compared: boolean;
};

export type FileAnswer =
  | { ok: true; facts: FileFacts | null }
  /** `refused`: the file is at fault, and the message says how. */
  | { ok: false; refused: boolean; message: string };
