import { styleText } from 'node:util';
import pretty from 'pino-pretty';

const COLORS = { api: 'cyan', 'gpu-worker': 'magenta', trainer: 'yellow' } as const;
const NAME_WIDTH = Math.max(...Object.keys(COLORS).map((name) => name.length));
const ATTENTION: ReadonlySet<unknown> = new Set(['warn', 'error', 'fatal']);

const LOOK = {
  colorize: process.stdout.hasColors?.() ?? false,
  translateTime: 'SYS:HH:MM:ss',
  ignore: 'pid,hostname,name,service,v',
  singleLine: true,
};
const formatVerbose = pretty.prettyFactory(LOOK);
const formatQuiet = pretty.prettyFactory({ ...LOOK, hideObject: true });

/**
 * A service's line for people: pino's JSON made readable, anything else as it is, each under the service's name.
 * @param verbose false hides what needs no attention: lines below a warning, and the fields of a line
 * @returns null when there is nothing to show
 */
export function formatLine(service: string, line: string, verbose: boolean): string | null {
  if (line.trim() === '') return null;
  const record = parseLine(line);
  if (record && !verbose && !ATTENTION.has(record['level'])) return null;
  const text = record ? (verbose ? formatVerbose : formatQuiet)(record).trimEnd() : line;
  return text
    .split('\n')
    .map((part) => `${prefix(service)} ${part}`)
    .join('\n');
}

/** The service's name as a column of its own. */
export function prefix(service: string): string {
  const color = COLORS[service as keyof typeof COLORS] ?? 'white';
  return styleText(color, service.padEnd(NAME_WIDTH));
}

/** The record of a JSON log line, null for anything else. */
export function parseLine(line: string): Record<string, unknown> | null {
  if (!line.startsWith('{')) return null;
  try {
    const record = JSON.parse(line) as Record<string, unknown>;
    return 'level' in record ? record : null;
  } catch {
    return null;
  }
}
