import { Presets, SingleBar } from 'cli-progress';
import { dim } from './output.ts';

export interface Progress {
  /** @param done of the `total` that it was made with; `note` is shown behind the bar */
  update(done: number, note?: string): void;
  /** Writes a line above the bar. */
  line(text: string): void;
  stop(): void;
}

/** A bar on stderr; when that is no terminal, only the lines. */
export function progressBar(title: string, total: number): Progress {
  if (!process.stderr.isTTY) {
    return { update: () => {}, line: (text) => void process.stderr.write(`${text}\n`), stop: () => {} };
  }
  const bar = new SingleBar(
    {
      format: `${title} {bar} {percentage} % ${dim('{note}')}`,
      hideCursor: true,
      clearOnComplete: true,
      stopOnComplete: false,
      linewrap: false,
      barsize: 28,
    },
    Presets.shades_classic,
  );
  bar.start(total, 0, { note: '' });
  return {
    update: (done, note) => bar.update(Math.min(done, total), note === undefined ? {} : { note }),
    line: (text) => {
      // The bar is drawn again, below, at its next update.
      process.stderr.write(`\r\u001B[2K${text}\n`);
      bar.render();
    },
    stop: () => bar.stop(),
  };
}
