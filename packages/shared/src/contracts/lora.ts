import { z } from 'zod';

/** Lower case, so that a bucket, a folder of any file system and a URL agree on what is one name. */
export const LORA_NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;

export const LoraName = z
  .string()
  .regex(LORA_NAME, {
    error: 'allowed are 1 to 64 lower case letters, digits and . _ -, a letter or digit first',
  })
  .meta({ example: 'ink-wash' });

const Tag = z.string().regex(LORA_NAME, {
  error: 'allowed are tags of 1 to 64 lower case letters, digits and . _ -, a letter or digit first',
});

/** How one version came to be. */
export const LoraProvenance = z
  .strictObject({
    source: z.enum(['import', 'training']),
    filename: z.string().nullable().meta({ description: 'Name of the imported file' }),
    training_job: z.string().nullable(),
    imported_at: z.iso.datetime(),
  })
  .meta({ id: 'LoraProvenance' });
export type LoraProvenance = z.infer<typeof LoraProvenance>;

/** What is known of a version's content. */
const content = {
  version: z.int().min(1),
  size: z.int().meta({ description: 'Bytes of the file' }),
  sha256: z.string(),
  dialects: z.array(z.string()).meta({ description: 'How the file names its tensors', example: ['peft'] }),
  rank: z.strictObject({ min: z.int(), max: z.int() }).meta({ description: 'Over all modules' }),
  modules: z
    .strictObject({ transformer: z.int(), text_encoder: z.int() })
    .meta({ description: 'Linear layers that it changes' }),
  base_model: z
    .string()
    .nullable()
    .meta({ description: 'Model whose shapes it was checked against; null when its files were not at hand' }),
  warnings: z.array(z.string()).meta({ description: 'What the import left out without harm' }),
  provenance: LoraProvenance,
};

/** `version.json` beside each file in the object store. A version exists from the moment that this does. */
export const LoraVersion = z.strictObject({ ...content, etag: z.string() });
export type LoraVersion = z.infer<typeof LoraVersion>;

export const LoraVersionView = z.strictObject({ name: z.string(), ...content }).meta({ id: 'LoraVersion' });
export type LoraVersionView = z.infer<typeof LoraVersionView>;

const settings = {
  description: z.string().max(2_000),
  default_weight: z
    .number()
    .min(-4)
    .max(4)
    .meta({ description: 'Weight of a style that is asked for without one' }),
  trigger_words: z.array(z.string().min(1).max(128)).max(32),
  tags: z.array(Tag).max(32),
};

/** `lora.json`: what belongs to all versions of a LoRA. */
export const LoraSettings = z.strictObject({
  ...settings,
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  /** While a rename copies into this name, the name that it copies from: until it is done nothing is visible here. */
  moving_from: z.string().optional(),
});
export type LoraSettings = z.infer<typeof LoraSettings>;

export const LoraView = z
  .strictObject({
    name: z.string(),
    ...settings,
    latest: LoraVersionView.meta({ description: 'What the bare name stands for' }),
    versions: z.array(z.int()).meta({ description: 'Newest first; each is `name@version`' }),
    created_at: z.iso.datetime(),
    updated_at: z.iso.datetime(),
  })
  .meta({ id: 'Lora' });
export type LoraView = z.infer<typeof LoraView>;

export const LoraList = z
  .strictObject({
    data: z.array(LoraView).meta({ description: 'In order of name' }),
    next_cursor: z.string().nullable().meta({ description: 'null on the last page' }),
  })
  .meta({ id: 'LoraList' });
export type LoraList = z.infer<typeof LoraList>;

/** Body of PATCH /v1/loras/{name}: only what is given changes. */
export const LoraPatch = z
  .strictObject({
    name: LoraName.meta({ description: 'Renames; all versions keep their numbers' }),
    ...settings,
  })
  .partial()
  .refine((patch) => Object.keys(patch).length > 0, { error: 'at least one field is needed' })
  .meta({ id: 'LoraPatch' });
export type LoraPatch = z.infer<typeof LoraPatch>;

/** Query of GET /v1/loras. */
export const LoraListQuery = z.strictObject({
  tag: Tag.optional().meta({ description: 'Only LoRAs with this tag' }),
  limit: z.coerce.number().int().min(1).max(100).default(50),
  cursor: z.string().min(1).max(64).optional().meta({ description: '`next_cursor` of the page before' }),
});

/** Query of PUT /v1/loras/{name}. */
export const LoraImportQuery = z.strictObject({
  filename: z.string().min(1).max(255).optional().meta({ description: 'Kept as provenance' }),
  model: z.string().min(1).max(128).optional().meta({
    description: 'Model that it must fit, by name in GET /v1/models; the default model when absent',
  }),
});

export const LORA_FORMATS = ['original', 'peft', 'kohya'] as const;

/** Query of GET /v1/loras/{name}/file. */
export const LoraFileQuery = z.strictObject({
  version: z.coerce.number().int().min(1).optional().meta({ description: 'The latest when absent' }),
  format: z
    .enum(LORA_FORMATS)
    .default('original')
    .meta({ description: '`peft` for diffusers and PEFT, `kohya` for ComfyUI and sd-scripts' }),
});
