import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import type { GenerationJob } from '@atelier/shared';
import { DEFAULT_URL, StudioClient } from '../client.ts';
import { contactSheet } from '../contact-sheet.ts';
import { DEMO_PROMPTS } from '../demo-prompts.ts';
import { dim, duration, green, printJson, table } from '../output.ts';
import { progressBar } from '../progress.ts';
import { settings } from '../settings.ts';
import { formatLine } from '../studio/log-line.ts';
import { interruption } from '../studio/signals.ts';
import { Studio } from '../studio/studio.ts';

export interface DemoOptions {
  url: string;
  out: string;
  model?: string;
  steps?: number;
  json?: boolean;
}

interface Picture {
  prompt: string;
  job: GenerationJob;
  data: Uint8Array;
}

/** Paints the demo's prompts on the studio that runs, or on one started for it alone, and puts them on one sheet. */
export async function demo(options: DemoOptions): Promise<void> {
  const say = (text: string) => {
    if (!options.json) process.stderr.write(`${text}\n`);
  };
  const running = new StudioClient(options.url);
  if (options.url !== DEFAULT_URL || (await running.isReady())) {
    say(dim(`Using the studio at ${running.url}`));
    await paint(running, options, new AbortController().signal);
    return;
  }
  say(dim('Starting a studio for the demo …'));
  const dataDir = await mkdtemp(join(tmpdir(), 'atelier-demo-'));
  // Prepared weights are kept: they are the same for every studio.
  const { ATELIER_CACHE_DIR } = settings();
  const studio = new Studio({
    config: settings({ ATELIER_PORT: '0', ATELIER_DATA_DIR: dataDir, ATELIER_CACHE_DIR }),
    onLine: (service, line) => {
      const shown = formatLine(service, line, false);
      if (shown !== null) say(shown);
    },
    onPhase: (text) => say(dim(text)),
  });
  const interrupted = interruption(() => studio.kill());
  const painting = new AbortController();
  try {
    const outcome = await Promise.race([
      studio.start().then(() => paint(new StudioClient(studio.url), options, painting.signal)),
      studio.failed.then((reason) => Promise.reject(reason)),
      interrupted,
    ]);
    if (outcome === 'interrupted') process.exitCode = 130;
  } finally {
    painting.abort();
    await studio.stop();
    await rm(dataDir, { recursive: true, force: true });
  }
}

async function paint(client: StudioClient, options: DemoOptions, signal: AbortSignal): Promise<void> {
  const started = performance.now();
  const fractions = DEMO_PROMPTS.map(() => 0);
  const bar = options.json ? null : progressBar('painting', DEMO_PROMPTS.length);
  let pictures: Picture[];
  try {
    const submitted: GenerationJob[] = [];
    for (const [i, prompt] of DEMO_PROMPTS.entries()) {
      submitted.push(
        await client.submit({ prompt, seed: i + 1, model: options.model, steps: options.steps }),
      );
    }
    pictures = await Promise.all(
      submitted.map(async (first, i) => {
        const prompt = DEMO_PROMPTS[i]!;
        const onChange = ({ status, progress }: GenerationJob) => {
          fractions[i] = progress.fraction;
          const done = fractions.reduce((sum, fraction) => sum + fraction, 0);
          bar?.update(done, status === 'running' ? prompt : undefined);
        };
        const job = await client.follow(first, onChange, signal);
        return { prompt, job, data: await client.download(job.output!.images[0]!.url) };
      }),
    );
  } finally {
    bar?.stop();
  }
  const file = resolve(options.out);
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, await sheet(pictures));
  const elapsed = performance.now() - started;
  if (options.json) {
    const list = pictures.map(({ prompt, job }) => ({
      prompt,
      ...job.output!.images[0],
      timings: job.timings,
    }));
    printJson({ file, elapsed_ms: Math.round(elapsed), pictures: list });
    return;
  }
  const rows = pictures.map(({ prompt, job }) => [prompt, duration(job.timings?.total_ms ?? 0)]);
  process.stdout.write(`${table(['prompt', 'took'], rows)}\n\n`);
  process.stdout.write(
    `${green('saved')} ${file} ${dim(`(${pictures.length} pictures in ${duration(elapsed)})`)}\n`,
  );
}

/** Every picture with its prompt and time, enlarged by a whole factor when small. */
async function sheet(pictures: readonly Picture[]): Promise<Buffer> {
  const side = Math.max(...pictures.map(({ job }) => job.output!.images[0]!.width));
  const cell = side * Math.max(1, Math.round(256 / side));
  return contactSheet(
    pictures.map(({ prompt, job, data }) => ({
      data,
      caption: prompt,
      note: duration(job.timings?.total_ms ?? 0),
    })),
    { columns: 4, cell },
  );
}
