import type { TrainingJob } from '@atelier/shared';
import { DEFAULT_URL, StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { dim, duration, green, printJson } from '../output.ts';
import { interruption } from '../studio/signals.ts';
import { type FollowedTraining, followTraining, samplesFolder } from '../training/follow.ts';
import { lossOf, useCommand } from '../training/result.ts';
import { printDataset, sendDataset } from './datasets.ts';

/** Options of the command; those of the recipe are the fields of the request, in camel case. */
export interface TrainOptions {
  url: string;
  json?: boolean;
  samplesDir?: string;
  samplePrompt?: string[];
  name: string;
  [recipe: string]: unknown;
}

const DATASET_ID = /^dst_[0-9a-f]{32}$/;

/**
 * Trains a LoRA: uploads the folder or archive unless a dataset of the studio is named, follows the job, and says
 * how the result is used. Ctrl-C ends the following and leaves the job alone.
 */
export async function train(path: string, options: TrainOptions): Promise<void> {
  const { url, json = false, samplesDir, samplePrompt, ...recipe } = options;
  const client = new StudioClient(url);
  const dataset = DATASET_ID.test(path) ? path : await upload(client, path, json);
  const submitted = await client.post<TrainingJob>('/v1/trainings', {
    dataset,
    ...inSnakeCase(recipe),
    sample_prompts: samplePrompt,
  });
  const accepted = json ? '' : `${green('accepted')} ${submitted.id}\n`;
  await followAndReport(client, submitted, {
    json,
    accepted,
    ...(samplesDir === undefined ? {} : { samplesDir }),
  });
}

/**
 * Follows a training until its end or Ctrl-C, and says how it went. `accepted` is written when Ctrl-C is listened for:
 * who reads it may press it at once.
 */
export async function followAndReport(
  client: StudioClient,
  submitted: TrainingJob,
  {
    json,
    accepted = '',
    samplesDir = samplesFolder(submitted.id),
  }: { json: boolean; accepted?: string; samplesDir?: string },
): Promise<void> {
  const interrupted = interruption(() => process.exit(130));
  if (accepted) process.stdout.write(accepted);
  const following = new AbortController();
  const followed = followTraining(client, submitted, { quiet: json, samplesDir, signal: following.signal });
  const outcome = await Promise.race([followed, interrupted]);
  if (outcome !== 'interrupted') return json ? printJson(outcome) : report(outcome);
  following.abort();
  await followed.catch(() => {});
  const where = client.url === DEFAULT_URL ? '' : ` --url ${client.url}`;
  process.stderr.write(
    `The training goes on. Follow it: atelier jobs ${submitted.id} --follow${where}\n` +
      `Stop it: atelier cancel ${submitted.id}${where}\n`,
  );
  process.exitCode = 130;
}

function report({ job, metrics }: FollowedTraining): void {
  const lora = job.output?.lora;
  if (lora === undefined) throw new CliError('no_lora', `Job ${job.id} succeeded without a LoRA`);
  for (const { file, problem } of metrics.skipped)
    process.stdout.write(`  ${dim('skipped')} ${file} ${problem}\n`);
  const took = Date.parse(job.finished_at ?? '') - Date.parse(job.started_at ?? '');
  const facts = [`${job.progress.steps} steps`, duration(took), lossOf(metrics)].filter(Boolean).join(', ');
  process.stdout.write(`${green('trained')} ${lora} ${dim(`(${facts})`)}\n`);
  process.stdout.write(`use it: ${useCommand(lora, job.input)}\n`);
}

async function upload(client: StudioClient, path: string, json: boolean): Promise<string> {
  const dataset = await sendDataset(client, path, { json });
  if (!json) printDataset(dataset);
  return dataset.id;
}

function inSnakeCase(options: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(options).map(([name, value]) => [
      name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      value,
    ]),
  );
}
