import type { GenerationJob, TrainingCheckpointList, TrainingJob, TrainingMetrics } from '@atelier/shared';
import { duration, shorten, table } from '../output.ts';
import { lossOf } from '../training/result.ts';
import type { Job } from './job.ts';

type Row = [name: string, value: string];

/** All that is known about a generation, one fact a line. */
export function describeGeneration(job: GenerationJob): string {
  const rows = stateOf(job);
  for (const [name, ms] of Object.entries(job.timings ?? {}))
    rows.push([name.replace(/_ms$/, ''), duration(ms ?? 0)]);
  const { styles, ...input } = job.input;
  for (const { lora, weight } of styles) rows.push(['style', `${lora}:${weight}`]);
  rows.push(...inputOf(input));
  for (const image of job.output?.images ?? []) rows.push(['picture', `${image.url} (seed ${image.seed})`]);
  return lines([...rows, ...errorOf(job)]);
}

/** All that is known about a training: its recipe, how the loss went, each checkpoint with what it draws. */
export function describeTraining(
  job: TrainingJob,
  metrics: TrainingMetrics,
  { data: checkpoints }: TrainingCheckpointList,
): string {
  const rows = [...stateOf(job), ...inputOf(job.input)];
  const loss = lossOf(metrics);
  if (loss !== null) rows.push(['loss', loss]);
  for (const { step, epoch, lora, validation_loss, samples } of checkpoints) {
    const facts = [
      step === 0 ? 'before training' : `step ${step}, epoch ${epoch}`,
      ...(validation_loss === null ? [] : [`validation loss ${validation_loss.toFixed(4)}`]),
    ].join(', ');
    rows.push(['checkpoint', lora === null ? facts : `${lora} (${facts})`]);
    for (const { url, prompt } of samples) rows.push(['', `${url} "${shorten(prompt, 48)}"`]);
  }
  for (const { file, problem } of metrics.skipped) rows.push(['skipped', `${file} ${problem}`]);
  if (job.output) rows.push(['lora', job.output.lora]);
  return lines([...rows, ...errorOf(job)]);
}

function stateOf(job: Job): Row[] {
  const { progress } = job;
  const rows: Row[] = [
    ['id', job.id],
    ['status', job.status],
    ['progress', `${progress.step}/${progress.steps} steps`],
    ['created', job.created_at],
  ];
  if (job.queue.position !== null) rows.push(['position', String(job.queue.position)]);
  if (job.status === 'running' && progress.eta_s !== null)
    rows.push(['left', duration(progress.eta_s * 1_000)]);
  if (job.finished_at) rows.push(['finished', job.finished_at]);
  return rows;
}

function inputOf(input: Record<string, unknown>): Row[] {
  return Object.entries(input)
    .filter(([, value]) => !Array.isArray(value) || value.length > 0)
    .map(([name, value]) => [name, shorten(typeof value === 'string' ? value : JSON.stringify(value), 80)]);
}

function errorOf({ error }: Job): Row[] {
  return error ? [['error', `${error.message} (${error.code})`]] : [];
}

function lines(rows: readonly Row[]): string {
  return table(['', ''], rows).split('\n').slice(1).join('\n');
}
