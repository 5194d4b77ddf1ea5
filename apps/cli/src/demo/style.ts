import { cp, mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import type { Dataset, TrainingJob } from '@atelier/shared';
import type { StudioClient } from '../client.ts';
import { printDataset, sendDataset } from '../commands/datasets.ts';
import { contactSheet } from '../contact-sheet.ts';
import { CliError } from '../errors.ts';
import { PROJECT } from '../settings.ts';
import { type FollowedTraining, followTraining } from '../training/follow.ts';
import { type Picture, cellOf, paint } from './paint.ts';

const EXAMPLE = join(PROJECT, 'examples', 'ink-wash');
const NAME = 'ink-wash';
const STYLE_WORDS = /^ink wash painting of /;

/** What makes a clear style of the example on the bundled model in 96 steps, about a minute on two cores. */
export const STYLE_RECIPE = Object.freeze({
  lora_rank: 8,
  lora_alpha: 16,
  learning_rate: 5e-3,
  lr_schedule: 'cosine',
  batch_size: 4,
  gradient_accumulation_steps: 1,
  max_epochs: 2,
  save_every_n_epochs: 1,
  validation_every: 20,
});

/** Subjects of the example's held-out list that the bundled model draws well without a style. */
const SUBJECTS = ['rocket', 'teapot', 'butterfly', 'red apple', 'fish', 'mushroom', 'sailboat', 'house'];

export interface StyleDemoOptions {
  sheet: string;
  lora: string;
  model?: string | undefined;
  steps?: number | undefined;
  quiet: boolean;
  signal: AbortSignal;
}

export interface StyleDemo extends FollowedTraining {
  base: Picture[];
  styled: Picture[];
  sheet: string;
  /** The trained file. */
  lora: string;
}

/**
 * Trains the example's style, then paints subjects that it has not seen without and with it, same prompt and same
 * seed, on one sheet. The LoRA stays in the studio and is saved as a file; the dataset is removed again.
 */
export async function demoStyle(client: StudioClient, options: StyleDemoOptions): Promise<StyleDemo> {
  const { quiet, signal, model, steps } = options;
  const dataset = await sendExample(client, quiet);
  if (!quiet) printDataset(dataset);
  let followed: FollowedTraining;
  try {
    const request = { ...STYLE_RECIPE, name: NAME, dataset: dataset.id, model };
    const submitted = await client.post<TrainingJob>('/v1/trainings', request);
    followed = await followTraining(client, submitted, { quiet, samplesDir: null, signal });
  } finally {
    // Of an interrupted demo it stays, since the training still needs it.
    await client.request(`/v1/datasets/${dataset.id}`, { method: 'DELETE' }).catch(() => {});
  }
  const pin = followed.job.output?.lora;
  if (pin === undefined) throw new CliError('no_lora', `Job ${followed.job.id} succeeded without a LoRA`);

  const requests = SUBJECTS.map((subject, i) => ({ prompt: `a ${subject}`, seed: i + 1, model, steps }));
  const styles = [{ lora: pin, weight: 1 }];
  const pictures = await paint(client, [...requests, ...requests.map((one) => ({ ...one, styles }))], {
    quiet,
    signal,
  });
  const [base, styled] = [pictures.slice(0, requests.length), pictures.slice(requests.length)];
  const [sheet, lora] = [resolve(options.sheet), resolve(options.lora)];
  for (const file of [sheet, lora]) await mkdir(dirname(file), { recursive: true });
  await writeFile(sheet, await styleSheet(base, styled, pin));
  const [name = '', version = ''] = pin.split('@');
  await writeFile(lora, await client.download(`/v1/loras/${name}/file?version=${version}`));
  return { ...followed, base, styled, sheet, lora };
}

/**
 * Uploads the example with captions that name the subject alone. So the style belongs to the LoRA and shows with any
 * prompt; learned with words of its own, which the base model does not know, it could not be compared fairly.
 */
async function sendExample(client: StudioClient, quiet: boolean): Promise<Dataset> {
  const folder = await mkdtemp(join(tmpdir(), 'atelier-demo-'));
  try {
    for (const part of ['images', 'prompts'])
      await cp(join(EXAMPLE, part), join(folder, part), { recursive: true });
    for (const name of await readdir(join(folder, 'prompts'))) {
      const file = join(folder, 'prompts', name);
      await writeFile(file, (await readFile(file, 'utf8')).replace(STYLE_WORDS, ''));
    }
    return await sendDataset(client, folder, { name: NAME, json: quiet });
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Two rows: without the style, and below each the same prompt and seed with it. */
export async function styleSheet(
  base: readonly Picture[],
  styled: readonly Picture[],
  style: string,
): Promise<Buffer> {
  const cell = cellOf(Math.max(...base.map(({ job }) => job.output!.images[0]!.width)));
  const row = (pictures: readonly Picture[], note: string) =>
    pictures.map(({ job, data }) => ({ data, caption: job.input.prompt, note }));
  return contactSheet([...row(base, 'without'), ...row(styled, `with ${style}`)], {
    columns: base.length,
    cell,
  });
}
