import { relative } from 'node:path';
import type { StudioClient } from '../client.ts';
import { type ContactDemo, demoContact } from '../demo/contact.ts';
import type { Picture } from '../demo/paint.ts';
import { type StyleDemo, demoStyle } from '../demo/style.ts';
import { withStudio } from '../demo/with-studio.ts';
import { dim, duration, green, printJson, table } from '../output.ts';
import { lossOf } from '../training/result.ts';

export interface DemoOptions {
  url: string;
  out: string;
  styleOut: string;
  loraOut: string;
  /** The contact sheet alone. */
  skipTraining?: boolean;
  model?: string;
  steps?: number;
  json?: boolean;
}

/**
 * Shows what the model draws, then that it learns: a contact sheet, and a style that is trained on the spot, beside
 * the same pictures without it. On the studio that runs, or on one started for it alone.
 */
export async function demo(options: DemoOptions): Promise<void> {
  const say = (text: string) => {
    if (!options.json) process.stderr.write(`${dim(text)}\n`);
  };
  await withStudio(options.url, say, async (client, signal) => {
    const started = performance.now();
    const common = { ...options, quiet: options.json ?? false, signal };
    const contact = await demoContact(client, common);
    if (!options.json) printContact(contact);
    const style = options.skipTraining ? null : await trained(client, common, say);
    if (options.json) printJson(asJson(contact, style, performance.now() - started));
  });
}

async function trained(
  client: StudioClient,
  options: DemoOptions & { quiet: boolean; signal: AbortSignal },
  say: (text: string) => void,
): Promise<StyleDemo> {
  const started = performance.now();
  say('\nNow a style: training on examples/ink-wash …');
  const style = await demoStyle(client, { ...options, sheet: options.styleOut, lora: options.loraOut });
  if (options.quiet) return style;
  const { job, metrics, base, sheet, lora } = style;
  const learned = [`${job.progress.steps} steps`, lossOf(metrics)].filter(Boolean).join(', ');
  const shown = `${base.length} subjects without and with the style, after ${duration(performance.now() - started)}`;
  process.stdout.write(`${green('trained')} ${lora} ${dim(`(${learned})`)}\n`);
  process.stdout.write(`${green('saved')} ${sheet} ${dim(`(${shown})`)}\n`);
  const file = relative('', lora);
  process.stdout.write(`use it: atelier generate "a lighthouse" --local --style ${file}\n`);
  return style;
}

function printContact({ file, pictures, elapsedMs }: ContactDemo): void {
  const rows = pictures.map(({ job }) => [job.input.prompt, duration(job.timings?.total_ms ?? 0)]);
  process.stdout.write(`${table(['prompt', 'took'], rows)}\n\n`);
  process.stdout.write(
    `${green('saved')} ${file} ${dim(`(${pictures.length} pictures in ${duration(elapsedMs)})`)}\n`,
  );
}

function asJson(contact: ContactDemo, style: StyleDemo | null, elapsedMs: number): unknown {
  const list = (pictures: readonly Picture[]) =>
    pictures.map(({ job }) => ({
      prompt: job.input.prompt,
      ...job.output!.images[0],
      timings: job.timings,
    }));
  return {
    file: contact.file,
    elapsed_ms: Math.round(elapsedMs),
    pictures: list(contact.pictures),
    style: style && {
      file: style.sheet,
      lora: style.lora,
      training: style.job,
      metrics: style.metrics,
      base: list(style.base),
      styled: list(style.styled),
    },
  };
}
