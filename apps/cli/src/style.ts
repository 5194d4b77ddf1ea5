/** A style as the command line names it. */
export interface StyleArgument {
  /** Name of a LoRA, name@version, or with --local a file. */
  lora: string;
  weight?: number;
}

/** `ink`, `ink:0.8`, `ink@3:-0.5`; null for a text that is none of these. */
export function parseStyle(text: string): StyleArgument | null {
  const [, lora, weight] = /^(.+?)(?::([+-]?(?:\d+\.?\d*|\.\d+)))?$/.exec(text) ?? [];
  // A path may have a colon; the name of a LoRA never does.
  if (!lora || (lora.includes(':') && !/[/\\]/.test(lora))) return null;
  return weight === undefined ? { lora } : { lora, weight: Number(weight) };
}
