import type { GenerationJob } from '@atelier/shared';
import { StudioClient } from '../client.ts';
import { duration, printJson, shorten, table } from '../output.ts';

interface ListOptions {
  url: string;
  json?: boolean;
}

/** The latest jobs, or one of them. */
export async function jobs(id: string | undefined, options: ListOptions): Promise<void> {
  const client = new StudioClient(options.url);
  if (id !== undefined) {
    const job = await client.get<GenerationJob>(`/v1/generations/${encodeURIComponent(id)}`);
    if (options.json) printJson(job);
    else process.stdout.write(`${describe(job)}\n`);
    return;
  }
  const page = await client.get<{ data: GenerationJob[] }>('/v1/generations');
  if (options.json) return printJson(page);
  const rows = page.data.map((job) => [
    job.id,
    job.status,
    job.created_at.slice(0, 19).replace('T', ' '),
    job.timings?.total_ms === undefined ? '' : duration(job.timings.total_ms),
    shorten(job.input.prompt, 60),
  ]);
  process.stdout.write(
    rows.length > 0
      ? `${table(['id', 'status', 'created (UTC)', 'took', 'prompt'], rows)}\n`
      : 'no jobs yet\n',
  );
}

function describe(job: GenerationJob): string {
  const { progress } = job;
  const rows: [string, string][] = [
    ['id', job.id],
    ['status', job.status],
    ['progress', `${progress.step}/${progress.steps} steps`],
    ['created', job.created_at],
  ];
  if (job.queue.position !== null) rows.push(['position', String(job.queue.position)]);
  if (job.finished_at) rows.push(['finished', job.finished_at]);
  for (const [name, ms] of Object.entries(job.timings ?? {}))
    rows.push([name.replace(/_ms$/, ''), duration(ms ?? 0)]);
  const { styles, ...input } = job.input;
  for (const { lora, weight } of styles) rows.push(['style', `${lora}:${weight}`]);
  for (const [name, value] of Object.entries(input)) {
    rows.push([name, shorten(typeof value === 'string' ? value : JSON.stringify(value), 80)]);
  }
  for (const image of job.output?.images ?? []) rows.push(['picture', `${image.url} (seed ${image.seed})`]);
  if (job.error) rows.push(['error', `${job.error.message} (${job.error.code})`]);
  return table(['', ''], rows).split('\n').slice(1).join('\n');
}
