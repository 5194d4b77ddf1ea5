import {
  type GenerationJob,
  type JobKind,
  type JobStatus,
  type TrainingCheckpointList,
  type TrainingJob,
  type TrainingMetrics,
  JOB_KINDS,
} from '@atelier/shared';
import { StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { describeGeneration, describeTraining } from '../jobs/describe.ts';
import { type Job, jobPath } from '../jobs/job.ts';
import { duration, green, printJson, shorten, table } from '../output.ts';
import { progressBar } from '../progress.ts';
import { followAndReport } from './train.ts';

interface JobsOptions {
  url: string;
  json?: boolean;
  kind?: JobKind;
  status?: JobStatus;
  limit?: number;
  follow?: boolean;
  samplesDir?: string;
}

/** The latest jobs of both kinds, or one job: as it is, or followed to its end. */
export async function jobs(id: string | undefined, options: JobsOptions): Promise<void> {
  const client = new StudioClient(options.url);
  if (id !== undefined) return options.follow ? follow(client, id, options) : show(client, id, options);
  if (options.follow) {
    throw new CliError('invalid_argument', '--follow needs the id of a job: atelier jobs <id> --follow');
  }
  await list(client, options);
}

/** Asks a job to stop: at once when it waits, within a step when it runs. */
export async function cancel(id: string, options: { url: string; json?: boolean }): Promise<void> {
  const job = await new StudioClient(options.url).post<Job>(`${jobPath(id)}/cancel`, {});
  if (options.json) return printJson(job);
  const said = job.status === 'canceled' ? green('canceled') : 'told to stop';
  process.stdout.write(`${said} ${job.id}\n`);
}

async function list(client: StudioClient, options: JobsOptions): Promise<void> {
  const { kind, status, limit = 20 } = options;
  const query = new URLSearchParams({ limit: String(limit), ...(status === undefined ? {} : { status }) });
  const kinds = kind === undefined ? JOB_KINDS : [kind];
  const pages = await Promise.all(
    kinds.map((one) => client.get<{ data: Job[] }>(`/v1/${one}s?${query.toString()}`)),
  );
  const latest = pages
    .flatMap(({ data }) => data)
    .sort((a, b) => b.created_at.localeCompare(a.created_at))
    .slice(0, limit);
  if (options.json) return printJson({ data: latest });
  const rows = latest.map((job) => [
    job.id,
    job.status,
    job.created_at.slice(0, 19).replace('T', ' '),
    tookOf(job),
    job.kind === 'training' ? trainingTitle(job) : shorten(job.input.prompt, 60),
  ]);
  process.stdout.write(
    rows.length > 0 ? `${table(['id', 'status', 'created (UTC)', 'took', 'what'], rows)}\n` : 'no jobs yet\n',
  );
}

async function show(client: StudioClient, id: string, { json }: JobsOptions): Promise<void> {
  const path = jobPath(id);
  const job = await client.get<Job>(path);
  if (job.kind === 'generation') {
    if (json) printJson(job);
    else process.stdout.write(`${describeGeneration(job)}\n`);
    return;
  }
  const [metrics, checkpoints] = await Promise.all([
    client.get<TrainingMetrics>(`${path}/metrics`),
    client.get<TrainingCheckpointList>(`${path}/checkpoints`),
  ]);
  if (json) printJson({ job, metrics, checkpoints: checkpoints.data });
  else process.stdout.write(`${describeTraining(job, metrics, checkpoints)}\n`);
}

async function follow(client: StudioClient, id: string, options: JobsOptions): Promise<void> {
  const { json = false, samplesDir } = options;
  const job = await client.get<Job>(jobPath(id));
  if (job.kind === 'training')
    return followAndReport(client, job, { json, ...(samplesDir === undefined ? {} : { samplesDir }) });
  const bar = json ? null : progressBar('generating', 1);
  const ended = await client
    .follow<GenerationJob>(job, ({ progress }) =>
      bar?.update(progress.fraction, `step ${progress.step}/${progress.steps}`),
    )
    .finally(() => bar?.stop());
  if (json) printJson(ended);
  else process.stdout.write(`${describeGeneration(ended)}\n`);
}

function tookOf(job: Job): string {
  if (job.kind === 'generation')
    return job.timings?.total_ms === undefined ? '' : duration(job.timings.total_ms);
  if (!job.started_at || !job.finished_at) return '';
  return duration(Date.parse(job.finished_at) - Date.parse(job.started_at));
}

function trainingTitle({ input, output, progress, status }: TrainingJob): string {
  if (output) return `trained ${output.lora}`;
  const at = status === 'running' && progress.steps > 0 ? `, step ${progress.step}/${progress.steps}` : '';
  return `training ${input.name}${at}`;
}
