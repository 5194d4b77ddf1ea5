import type { TrainingJob, TrainingMetrics } from '@atelier/shared';
import { StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { dim, duration, green, printJson } from '../output.ts';
import { progressBar } from '../progress.ts';
import { printDataset, sendDataset } from './datasets.ts';

/** Options of the command; those of the recipe are the fields of the request, in camel case. */
export interface TrainOptions {
  url: string;
  json?: boolean;
  name: string;
  [recipe: string]: unknown;
}

const DATASET_ID = /^dst_[0-9a-f]{32}$/;

/**
 * Trains a LoRA: uploads the folder or archive unless a dataset of the studio is named, follows the job, and says
 * how the result is used. Ctrl-C ends the following and leaves the job alone.
 */
export async function train(path: string, options: TrainOptions): Promise<void> {
  const { url, json = false, ...recipe } = options;
  const client = new StudioClient(url);
  const dataset = DATASET_ID.test(path) ? path : await upload(client, path, json);
  const submitted = await client.post<TrainingJob>('/v1/trainings', { dataset, ...inSnakeCase(recipe) });
  if (!json) process.stdout.write(`${green('accepted')} ${submitted.id}\n`);

  const started = Date.now();
  const bar = json ? null : progressBar('training', 1);
  const job = await client
    .follow(submitted, (current) => bar?.update(current.progress.fraction, noteOf(current)))
    .finally(() => bar?.stop());
  const metrics = await client.get<TrainingMetrics>(`/v1/trainings/${job.id}/metrics`);
  if (json) return printJson({ job, metrics });

  const lora = job.output?.lora;
  if (lora === undefined) throw new CliError('no_lora', `Job ${job.id} succeeded without a LoRA`);
  for (const { file, problem } of metrics.skipped)
    process.stdout.write(`  ${dim('skipped')} ${file} ${problem}\n`);
  const facts = [`${job.progress.steps} steps`, duration(Date.now() - started), ...lossOf(metrics)].join(
    ', ',
  );
  process.stdout.write(`${green('trained')} ${lora} ${dim(`(${facts})`)}\n`);
  process.stdout.write(`use it: atelier generate "a lighthouse" --style ${lora}\n`);
}

async function upload(client: StudioClient, path: string, json: boolean): Promise<string> {
  const dataset = await sendDataset(client, path, { json });
  if (!json) printDataset(dataset);
  return dataset.id;
}

function noteOf({ status, progress, queue }: TrainingJob): string {
  if (status === 'queued') return queue.position === null ? 'waiting' : `waiting behind ${queue.position}`;
  if (progress.steps === 0) return 'reading the dataset';
  const left = progress.eta_s === null ? '' : `, ${duration(progress.eta_s * 1_000)} left`;
  return `step ${progress.step}/${progress.steps}${left}`;
}

/** The loss on the pictures held back, else that of the first and the last step. */
function lossOf({ steps, validation }: TrainingMetrics): string[] {
  const [name, series] = validation.length > 1 ? ['validation loss', validation] : ['loss', steps];
  const [first, last] = [series.at(0), series.at(-1)];
  return first && last ? [`${name} ${first.loss.toFixed(4)} to ${last.loss.toFixed(4)}`] : [];
}

function inSnakeCase(options: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(options).map(([name, value]) => [
      name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      value,
    ]),
  );
}
