import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DEFAULT_URL, StudioClient } from '../client.ts';
import { settings } from '../settings.ts';
import { formatLine } from '../studio/log-line.ts';
import { interruption } from '../studio/signals.ts';
import { Studio } from '../studio/studio.ts';

/**
 * Does `work` on the studio at `url`; when none runs at the default URL, on one that is started for it alone and
 * leaves nothing behind but prepared weights. An interruption aborts the signal and sets exit code 130.
 */
export async function withStudio(
  url: string,
  say: (text: string) => void,
  work: (client: StudioClient, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const working = new AbortController();
  const running = new StudioClient(url);
  if (url !== DEFAULT_URL || (await running.isReady())) {
    say(`Using the studio at ${running.url}`);
    return work(running, working.signal);
  }
  say('Starting a studio for the demo …');
  const dataDir = await mkdtemp(join(tmpdir(), 'atelier-demo-'));
  // Prepared weights are kept: they are the same for every studio.
  const { ATELIER_CACHE_DIR } = settings();
  const studio = new Studio({
    config: settings({ ATELIER_PORT: '0', ATELIER_DATA_DIR: dataDir, ATELIER_CACHE_DIR }),
    onLine: (service, line) => {
      const shown = formatLine(service, line, false);
      if (shown !== null) say(shown);
    },
    onPhase: say,
  });
  const interrupted = interruption(() => studio.kill());
  try {
    const outcome = await Promise.race([
      studio.start().then(() => work(new StudioClient(studio.url), working.signal)),
      studio.failed.then((reason) => Promise.reject(reason)),
      interrupted,
    ]);
    if (outcome === 'interrupted') process.exitCode = 130;
  } finally {
    working.abort();
    await studio.stop();
    await rm(dataDir, { recursive: true, force: true });
  }
}
