import { StudioClient } from '../client.ts';
import { bold, dim, duration, printError } from '../output.ts';
import { settings } from '../settings.ts';
import { JobNarrator } from '../studio/job-narrator.ts';
import { formatLine, parseLine, prefix } from '../studio/log-line.ts';
import { interruption } from '../studio/signals.ts';
import { Studio } from '../studio/studio.ts';

export interface UpOptions {
  verbose?: boolean;
  json?: boolean;
}

/** Runs the whole studio until it is asked to stop or a part of it fails (exit code 1). */
export async function up(options: UpOptions): Promise<void> {
  const started = performance.now();
  const config = settings();
  const say = (text: string) => {
    if (!options.json) process.stdout.write(`${text}\n`);
  };
  // Stays null with every log line shown, or for a program that reads them: there is nothing to add.
  let narrator: JobNarrator | null = null;
  const studio = new Studio({
    config,
    onLine: (service, line) => {
      const shown = options.json ? line : formatLine(service, line, options.verbose ?? false);
      if (shown !== null) process.stdout.write(`${shown}\n`);
      const jobId = service === 'api' ? undefined : parseLine(line)?.['job_id'];
      if (typeof jobId === 'string') narrator?.notice(jobId);
    },
    onPhase: (text) => say(dim(text)),
  });
  const interrupted = interruption(() => studio.kill());
  try {
    say(dim('Starting atelier …'));
    const start = await Promise.race([studio.start(), interrupted]);
    if (start !== 'interrupted') {
      if (options.json)
        process.stdout.write(`${JSON.stringify({ ready: true, url: studio.url, pids: studio.pids })}\n`);
      else say(banner(studio.url, config.ATELIER_DATA_DIR, performance.now() - started));
      if (!options.json && !options.verbose) {
        narrator = new JobNarrator(new StudioClient(studio.url), (service, line) =>
          say(`${prefix(service)} ${line}`),
        );
      }
      await Promise.race([interrupted, studio.failed.then((reason) => Promise.reject(reason))]);
    }
    say(dim('\nStopping; Ctrl-C again does not wait for running jobs'));
  } catch (error) {
    printError(error, options.json ?? false);
    process.exitCode = 1;
  }
  await studio.stop();
  say(dim('Stopped.'));
}

function banner(url: string, dataDir: string, ms: number): string {
  const headers = [
    "-H 'Content-Type: application/json' -H 'Prefer: wait=60'",
    ...(process.env['ATELIER_API_KEYS'] ? ["-H 'Authorization: Bearer <one of ATELIER_API_KEYS>'"] : []),
  ];
  const body = `'{"prompt": "a red apple on a blue background"}'`;
  return `
  ${bold('atelier')} is ready on ${bold(url)} ${dim(`after ${duration(ms)}`)}

  ${dim('try')}   curl -sS ${url}/v1/generations ${headers.join(' ')} -d ${body}
  ${dim('docs')}  ${url}/docs
  ${dim('data')}  ${dataDir}
  ${dim('stop')}  Ctrl-C
`;
}
