import { writeFile } from 'node:fs/promises';
import { StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { dim, duration, green, printJson } from '../output.ts';
import { progressBar } from '../progress.ts';
import type { StyleArgument } from '../style.ts';

export interface GenerateOptions {
  url: string;
  out?: string;
  model?: string;
  seed?: number;
  steps?: number;
  guidance?: number;
  width?: number;
  height?: number;
  style?: StyleArgument[];
  local?: boolean;
  json?: boolean;
}

/** Makes one picture on a running studio, or in this process's own engine, and saves it. */
export async function generate(prompt: string, options: GenerateOptions): Promise<void> {
  const bar = options.json ? null : progressBar('generating', 1);
  try {
    const result = options.local
      ? await (
          await import('../local-engine.ts')
        ).generateLocally(prompt, options, (f, note) => bar?.update(f, note))
      : await generateRemotely(prompt, options, (f, note) => bar?.update(f, note));
    bar?.stop();
    const file = options.out ?? `${slug(prompt)}-${result.seed}.png`;
    await writeFile(file, result.data);
    if (options.json) printJson({ file, ...result.report });
    else {
      const { width, height, seed, ms } = result;
      const facts = [`${width} x ${height}`, `seed ${seed}`, duration(ms)].join(', ');
      process.stdout.write(`${green('saved')} ${file} ${dim(`(${facts})`)}\n`);
    }
  } finally {
    bar?.stop();
  }
}

/** A made picture: its encoded bytes and what is told about it. */
export interface Generated {
  data: Uint8Array;
  width: number;
  height: number;
  seed: number;
  ms: number;
  report: Record<string, unknown>;
}

async function generateRemotely(
  prompt: string,
  options: GenerateOptions,
  onProgress: (fraction: number, note: string) => void,
): Promise<Generated> {
  const client = new StudioClient(options.url);
  const { model, style: styles, seed, steps, guidance, width, height } = options;
  const submitted = await client.submit({ prompt, model, styles, seed, steps, guidance, width, height });
  const job = await client.follow(submitted, ({ status, progress, queue }) => {
    const waiting = queue.position === null ? 'waiting' : `waiting behind ${queue.position}`;
    onProgress(progress.fraction, status === 'queued' ? waiting : `step ${progress.step}/${progress.steps}`);
  });
  const image = job.output?.images[0];
  if (!image) throw new CliError('no_picture', `Job ${job.id} succeeded without a picture`);
  return {
    data: await client.download(image.url),
    width: image.width,
    height: image.height,
    seed: image.seed,
    ms: job.timings?.total_ms ?? 0,
    report: { job },
  };
}

/** A file name that says what is in the picture. */
export function slug(prompt: string): string {
  const words = prompt
    .toLowerCase()
    .normalize('NFKD')
    .replaceAll(/[^a-z0-9]+/g, '-')
    .replaceAll(/^-|-$/g, '');
  return words.slice(0, 48).replace(/-$/, '') || 'picture';
}
