import { styleText } from 'node:util';
import { isCoded } from './errors.ts';

export const dim = (text: string): string => styleText('dim', text);
export const bold = (text: string): string => styleText('bold', text);
export const red = (text: string): string => styleText('red', text);
export const green = (text: string): string => styleText('green', text);

/** `843 ms`, `4.21 s`, `2 min 05 s`. */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, '0')} s`;
}

/** `512 B`, `4.6 MB`. */
export function bytes(size: number): string {
  const units = ['B', 'kB', 'MB', 'GB'];
  let value = size;
  while (value >= 1000 && units.length > 1) {
    value /= 1000;
    units.shift();
  }
  return `${units[0] === 'B' ? value : value.toPrecision(3)} ${units[0]}`;
}

/** A text of at most `width` characters. */
export function shorten(text: string, width: number): string {
  const line = text.replaceAll(/\s+/g, ' ');
  return line.length <= width ? line : `${line.slice(0, width - 1)}…`;
}

/** Rows under a dim heading, columns as wide as they have to be. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = heading.map((title, i) =>
    Math.max(title.length, ...rows.map((row) => (row[i] ?? '').length)),
  );
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd();
  return [dim(line(heading)), ...rows.map(line)].join('\n');
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

/** The last words of a failed command, on stderr: one line, or a JSON object for programs. */
export function printError(error: unknown, json: boolean): void {
  const code = isCoded(error) ? error.code : 'internal_error';
  const message = error instanceof Error ? error.message : String(error);
  const errors = isCoded(error) ? (error.errors ?? []) : [];
  if (json) {
    process.stderr.write(`${JSON.stringify({ error: { code, message, errors } })}\n`);
    return;
  }
  process.stderr.write(`${red('error')} ${message} ${dim(`(${code})`)}\n`);
  for (const { field, message: rule } of errors)
    process.stderr.write(`  ${bold(field || 'body')}: ${rule}\n`);
  // Nobody foresaw this one: the stack is what a bug report needs.
  if (!isCoded(error) && error instanceof Error) process.stderr.write(`${dim(error.stack ?? '')}\n`);
}
