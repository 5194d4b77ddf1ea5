import { z } from 'zod';
import { JobError, JobStatus, Progress } from './job.ts';
import { LoraName } from './lora.ts';
import { WebhookRequest, WebhookView } from './webhook.ts';

/** Limits of a training that hold for every model. */
export const TRAINING_LIMITS = Object.freeze({
  rank: { min: 1, max: 256 },
  epochs: { min: 1, max: 10_000 },
  batch: { min: 1, max: 64 },
  resolution: { min: 64, max: 2048, multipleOf: 16 },
  samplePrompts: 8,
});

/** FLUX.1 learns a style at this resolution; smaller models are trained at their own. */
export const MAX_DEFAULT_RESOLUTION = 768;

const text = (max: number) =>
  z
    .string()
    .min(1)
    .max(max)
    .refine((value) => value.isWellFormed(), {
      error: 'found half of a surrogate pair, allowed is Unicode text',
    });

const options = {
  lora_rank: z.int().min(TRAINING_LIMITS.rank.min).max(TRAINING_LIMITS.rank.max).default(4),
  lora_alpha: z
    .number()
    .gt(0)
    .max(1024)
    .default(8)
    .meta({ description: 'The change is scaled by alpha / rank' }),
  targets: z
    .enum(['attention', 'all'])
    .default('attention')
    .meta({ description: 'Linear layers that are trained: those of attention, or the MLPs as well' }),
  learning_rate: z.number().gt(0).max(1).default(1e-4),
  lr_schedule: z.enum(['constant', 'cosine', 'linear']).default('constant'),
  lr_warmup_steps: z.int().min(0).max(100_000).default(0),
  batch_size: z.int().min(TRAINING_LIMITS.batch.min).max(TRAINING_LIMITS.batch.max).default(4),
  gradient_accumulation_steps: z.int().min(1).max(1024).default(4),
  max_epochs: z.int().min(TRAINING_LIMITS.epochs.min).max(TRAINING_LIMITS.epochs.max).default(100),
  save_every_n_epochs: z
    .int()
    .min(1)
    .max(TRAINING_LIMITS.epochs.max)
    .default(10)
    .meta({ description: 'Each checkpoint becomes a version of the LoRA' }),
  timestep_sampling: z.enum(['shift', 'sigmoid', 'uniform']).default('shift'),
  caption_dropout: z
    .number()
    .min(0)
    .max(1)
    .default(0)
    .meta({ description: 'Share of pictures that are trained without their caption' }),
  min_snr_gamma: z.number().gt(0).max(1000).optional().meta({
    description: 'Min-SNR weighting of the loss (5 is usual); all noise levels weigh the same when absent',
  }),
  trigger_word: text(128).optional().meta({ description: 'Put in front of captions that lack it' }),
  validation_every: z
    .int()
    .min(2)
    .max(10_000)
    .optional()
    .meta({ description: 'Holds every k-th picture back to measure the loss on; none when absent' }),
  sample_prompts: z
    .array(text(2000))
    .max(TRAINING_LIMITS.samplePrompts)
    .default([])
    .meta({
      description:
        'Pictures drawn from these before the first step and at each checkpoint, the i-th with seed + i; ' +
        'the trigger word is not added',
    }),
  // So that the seed of the last sample is a number that JSON carries exactly, too.
  seed: z
    .int()
    .min(0)
    .max(Number.MAX_SAFE_INTEGER - TRAINING_LIMITS.samplePrompts)
    .default(42),
  skip_bad: z
    .boolean()
    .default(false)
    .meta({ description: 'Train on what is good instead of refusing a dataset with a problem' }),
  priority: z.enum(['low', 'normal', 'high']).default('normal'),
};

const resolution = z
  .int()
  .min(TRAINING_LIMITS.resolution.min)
  .max(TRAINING_LIMITS.resolution.max)
  .multipleOf(TRAINING_LIMITS.resolution.multipleOf)
  .meta({ description: "Side of a square in pixels; the model's own width, at most 768, when absent" });

/** Body of POST /v1/trainings; names and defaults of the usual recipe. */
export const TrainingRequest = z
  .strictObject({
    name: LoraName.meta({ description: 'LoRA that the result becomes a version of' }),
    dataset: z
      .string()
      .regex(/^dst_[0-9a-f]{32}$/, { error: 'allowed is the id of a dataset, see GET /v1/datasets' })
      .meta({ example: 'dst_0199b1a6c1d27a6e8f0b8d8a3f6f0c11' }),
    model: z.string().min(1).max(128).optional().meta({ description: 'Name in GET /v1/models' }),
    resolution: resolution.optional(),
    ...options,
    webhook: WebhookRequest.optional(),
    metadata: z.record(z.string().max(64), z.string().max(512)).default({}),
  })
  .meta({ id: 'TrainingRequest' });
export type TrainingRequest = z.infer<typeof TrainingRequest>;

/** What a trainer executes. */
export const TrainingInput = z
  .strictObject({ name: z.string(), dataset: z.string(), model: z.string(), resolution, ...options })
  .meta({ id: 'TrainingInput' });
export type TrainingInput = z.infer<typeof TrainingInput>;

/** The job as clients see it. */
export const TrainingJob = z
  .strictObject({
    id: z.string(),
    kind: z.literal('training'),
    status: JobStatus,
    progress: Progress.meta({ description: 'In optimizer steps' }),
    queue: z.strictObject({ position: z.int().nullable(), eta_s: z.number().nullable() }),
    input: TrainingInput,
    output: z
      .strictObject({ lora: z.string().meta({ example: 'ink-wash@1' }) })
      .nullable()
      .meta({ description: 'What a generation names in `styles`' }),
    error: JobError.nullable(),
    attempts: z.int(),
    webhook: WebhookView.nullable(),
    metadata: z.record(z.string(), z.string()),
    created_at: z.iso.datetime(),
    started_at: z.iso.datetime().nullable(),
    finished_at: z.iso.datetime().nullable(),
  })
  .meta({ id: 'TrainingJob' });
export type TrainingJob = z.infer<typeof TrainingJob>;

export const TrainingList = z
  .strictObject({
    data: z.array(TrainingJob).meta({ description: 'Newest first' }),
    next_cursor: z.string().nullable(),
  })
  .meta({ id: 'TrainingList' });
export type TrainingList = z.infer<typeof TrainingList>;

const drawn = {
  prompt: z.string(),
  seed: z.int(),
  width: z.int(),
  height: z.int(),
  sha256: z.string().meta({ description: 'Of the PNG file' }),
};

/** What a training measured so far. */
export const TrainingMetrics = z
  .strictObject({
    steps: z
      .array(
        z.strictObject({
          step: z.int().meta({ description: 'Optimizer step, the first is 1' }),
          epoch: z.int(),
          loss: z.number(),
          learning_rate: z.number(),
          gradient_norm: z.number(),
        }),
      )
      .meta({ description: 'Without those that were skipped because their gradients overflowed' }),
    validation: z
      .array(z.strictObject({ epoch: z.int(), loss: z.number() }))
      .meta({ description: 'Loss on the pictures held back; epoch 0 is before training' }),
    checkpoints: z.array(z.strictObject({ epoch: z.int(), step: z.int(), lora: z.string() })),
    samples: z
      .array(z.strictObject({ epoch: z.int(), step: z.int(), index: z.int(), ...drawn }))
      .default([])
      .meta({ description: 'Pictures of `sample_prompts`; step 0 is before training' }),
    skipped: z
      .array(z.strictObject({ file: z.string(), problem: z.string() }))
      .meta({ description: 'Files left out, with `skip_bad`' }),
  })
  .meta({ id: 'TrainingMetrics' });
export type TrainingMetrics = z.infer<typeof TrainingMetrics>;

/** The checkpoints of a training with what each one draws. */
export const TrainingCheckpointList = z
  .strictObject({
    data: z
      .array(
        z.strictObject({
          epoch: z.int(),
          step: z.int(),
          lora: z
            .string()
            .nullable()
            .meta({ description: 'null for step 0, before training', example: 'ink-wash@1' }),
          validation_loss: z.number().nullable(),
          samples: z.array(z.strictObject({ ...drawn, url: z.url().meta({ description: 'The PNG file' }) })),
        }),
      )
      .meta({ description: 'Oldest first' }),
  })
  .meta({ id: 'TrainingCheckpointList' });
export type TrainingCheckpointList = z.infer<typeof TrainingCheckpointList>;
