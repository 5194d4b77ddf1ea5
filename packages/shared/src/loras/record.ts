import type { LoraSettings, LoraVersion, LoraVersionView, LoraView } from '../contracts/lora.ts';

/** A LoRA with all its versions, as the object store has it and the index repeats it. */
export interface LoraRecord extends Omit<LoraSettings, 'moving_from'> {
  name: string;
  /** Oldest first, never empty. */
  versions: readonly LoraVersion[];
}

export const latestOf = (record: LoraRecord): LoraVersion => record.versions.at(-1)!;

export function loraView(record: LoraRecord): LoraView {
  return {
    name: record.name,
    description: record.description,
    default_weight: record.default_weight,
    trigger_words: record.trigger_words,
    tags: record.tags,
    latest: loraVersionView(record.name, latestOf(record)),
    versions: record.versions.map(({ version }) => version).toReversed(),
    created_at: record.created_at,
    updated_at: record.updated_at,
  };
}

export function loraVersionView(name: string, version: LoraVersion): LoraVersionView {
  const { etag: _, ...shown } = version;
  return { name, ...shown };
}
