import { z } from 'zod';
import { WebhookRequest } from './webhook.ts';

/** Limits of a request that hold for every model; a model's own limits are in its catalog entry. */
export const LIMITS = Object.freeze({
  steps: { min: 1, max: 50 },
  side: { min: 64, max: 2048, multipleOf: 16 },
  guidance: { min: 0, max: 30 },
  /** The largest integer that JSON numbers carry exactly. */
  seed: { min: -1, max: Number.MAX_SAFE_INTEGER },
  count: { min: 1, max: 8 },
  promptCharacters: 4096,
  styles: 8,
  metadataBytes: 4096,
});

const side = (name: string) =>
  z
    .int()
    .min(LIMITS.side.min)
    .max(LIMITS.side.max)
    .multipleOf(LIMITS.side.multipleOf)
    .meta({ description: `${name} in pixels; the model's native size when absent` });

export const StyleRef = z
  .strictObject({
    lora: z.string().min(1).max(128).meta({
      description: 'Name of a LoRA, which is its latest version, or name@version',
      example: 'ink-wash',
    }),
    weight: z
      .number()
      .min(-4)
      .max(4)
      .optional()
      .meta({ description: "Factor on its change, may be negative; the LoRA's default weight when absent" }),
  })
  .meta({ id: 'StyleRef' });
export type StyleRef = z.infer<typeof StyleRef>;

/** A style as a job keeps it: a version that was imported meanwhile does not change the job. */
export const PinnedStyle = z
  .strictObject({
    lora: z.string().meta({ description: 'name@version', example: 'ink-wash@3' }),
    weight: z.number(),
  })
  .meta({ id: 'PinnedStyle' });
export type PinnedStyle = z.infer<typeof PinnedStyle>;

export const InitImage = z
  .strictObject({
    file: z.string().min(1).meta({ description: 'The picture as a data URI: data:image/png;base64,...' }),
    strength: z
      .number()
      .gt(0)
      .max(1)
      .default(0.6)
      .meta({ description: '1 ignores the picture, values near 0 keep it' }),
  })
  .meta({ id: 'InitImage' });

export const IMAGE_FORMATS = ['png', 'jpeg', 'webp'] as const;

/** Body of POST /v1/generations. Absent fields take the model's defaults when the job is accepted. */
export const GenerationRequest = z
  .strictObject({
    prompt: z
      .string()
      .max(LIMITS.promptCharacters)
      // JSON can carry half of a surrogate pair; UTF-8, and so the record of the job, cannot.
      .refine((text) => text.isWellFormed(), {
        error: 'found half of a surrogate pair, allowed is Unicode text',
      })
      .meta({ example: 'a red apple on a blue background' }),
    model: z.string().min(1).max(128).optional().meta({ description: 'Name in GET /v1/models' }),
    styles: z.array(StyleRef).max(LIMITS.styles).default([]),
    width: side('Width').optional(),
    height: side('Height').optional(),
    steps: z.int().min(LIMITS.steps.min).max(LIMITS.steps.max).optional(),
    guidance: z.number().min(LIMITS.guidance.min).max(LIMITS.guidance.max).optional(),
    seed: z
      .int()
      .min(LIMITS.seed.min)
      .max(LIMITS.seed.max)
      .default(-1)
      .meta({ description: '-1 chooses a random seed; the seed used is in the output' }),
    count: z.int().min(LIMITS.count.min).max(LIMITS.count.max).default(1),
    format: z.enum(IMAGE_FORMATS).default('png'),
    image: InitImage.optional(),
    priority: z.enum(['low', 'normal', 'high']).default('normal'),
    webhook: WebhookRequest.optional(),
    metadata: z.record(z.string().max(64), z.string().max(512)).default({}),
  })
  .meta({ id: 'GenerationRequest' });
export type GenerationRequest = z.infer<typeof GenerationRequest>;

/** What a worker executes: every default resolved, the seed concrete, the init image moved to the object store. */
export const GenerationInput = z
  .strictObject({
    prompt: z.string(),
    model: z.string(),
    styles: z.array(PinnedStyle),
    width: z.int(),
    height: z.int(),
    steps: z.int(),
    guidance: z.number(),
    seed: z.int().min(0).meta({ description: 'Image i of a job with count > 1 uses seed + i' }),
    count: z.int(),
    format: z.enum(IMAGE_FORMATS),
    image: z.strictObject({ key: z.string(), strength: z.number() }).optional(),
    priority: z.enum(['low', 'normal', 'high']),
  })
  .meta({ id: 'GenerationInput' });
export type GenerationInput = z.infer<typeof GenerationInput>;

/** The input as clients see it: the place of the init image in the object store is not theirs to know. */
export const GenerationInputView = z
  .strictObject({
    ...GenerationInput.shape,
    image: z.strictObject({ strength: z.number() }).optional(),
  })
  .meta({ id: 'GenerationInputView' });
export type GenerationInputView = z.infer<typeof GenerationInputView>;
