import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import type { StudioClient } from '../client.ts';
import { contactSheet } from '../contact-sheet.ts';
import { DEMO_PROMPTS } from './prompts.ts';
import { duration } from '../output.ts';
import { type Picture, cellOf, paint } from './paint.ts';

export interface ContactDemo {
  /** The sheet. */
  file: string;
  pictures: Picture[];
  elapsedMs: number;
}

/** Paints the demo's prompts and puts them on one sheet, each with its prompt and time. */
export async function demoContact(
  client: StudioClient,
  options: { out: string; model?: string; steps?: number; quiet: boolean; signal: AbortSignal },
): Promise<ContactDemo> {
  const started = performance.now();
  const { model, steps } = options;
  const requests = DEMO_PROMPTS.map((prompt, i) => ({ prompt, seed: i + 1, model, steps }));
  const pictures = await paint(client, requests, options);
  const file = resolve(options.out);
  await mkdir(dirname(file), { recursive: true });
  const cell = cellOf(Math.max(...pictures.map(({ job }) => job.output!.images[0]!.width)));
  const shown = pictures.map(({ job, data }) => ({
    data,
    caption: job.input.prompt,
    note: duration(job.timings?.total_ms ?? 0),
  }));
  await writeFile(file, await contactSheet(shown, { columns: 4, cell }));
  return { file, pictures, elapsedMs: performance.now() - started };
}
