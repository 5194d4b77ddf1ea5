import { spawn } from 'node:child_process';
import { appendFile, mkdir, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import type { ModelFiles } from '../../packages/flux/src/checkpoint/model-files.ts';
import type { Provider } from '../../packages/flux/src/runtime/session.ts';
import { DeviceMemory, holdMemory } from './device-memory.ts';
import { type Measurement, measureOurs } from './ours.ts';
import { writeRandomFlux } from './random-flux.ts';

/*
 * npm run bench:gpu: FLUX.1-dev's architecture with random weights on a GPU, beside diffusers on the same card in the
 * same sitting. Writes about 21 GB into --model once. With --free-gib another process holds the rest of the card's
 * memory, so that a large card is as tight as a small one.
 */

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: join(tmpdir(), 'atelier-flux-random') },
    sizes: { type: 'string', default: '512,768,1024' },
    steps: { type: 'string', default: '20,28' },
    t5: { type: 'string', default: 'BF16' },
    python: { type: 'string', default: 'python3' },
    provider: { type: 'string', default: 'cuda' },
    parts: { type: 'string', default: 'ours,peer' },
    'free-gib': { type: 'string' },
    compile: { type: 'boolean', default: false },
    blocks: { type: 'string' },
    out: { type: 'string' },
  },
});
const numbers = (text: string): number[] => text.split(',').map(Number);
const measurements: Measurement[] = [];

const blocks = values.blocks === undefined ? undefined : (numbers(values.blocks) as [number, number]);
const files = await modelFiles();
const free = values['free-gib'];
const ballast = free === undefined ? null : await holdMemory(Number(free), values.python);
const memory = await DeviceMemory.watch();
const parts = values.parts.split(',');
if (parts.includes('ours')) await ours();
if (parts.includes('peer')) await peer();
memory.stop();
ballast?.stop();
console.log(`\n${table(measurements)}`);

function report(measurement: Measurement): void {
  measurements.push(measurement);
  console.log(JSON.stringify(measurement));
  if (values.out !== undefined) void appendFile(values.out, `${JSON.stringify(measurement)}\n`);
}

async function ours(): Promise<void> {
  await measureOurs({
    files,
    folder: values.model,
    provider: values.provider as Provider,
    sizes: numbers(values.sizes),
    steps: numbers(values.steps),
    memory,
    report,
    ...(blocks ? { adapted: (module: string) => /blocks\.0\./.test(module) } : {}),
    ...(free === undefined ? {} : { note: `, ${free} GiB free` }),
  });
}

async function peer(): Promise<void> {
  const script = join(import.meta.dirname, 'peer.py');
  const args = [script, '--sizes', values.sizes, '--steps', values.steps];
  if (values.blocks) args.push('--blocks', values.blocks);
  if (values.compile) args.push('--compile');
  const child = spawn(values.python, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  for await (const line of createInterface(child.stdout)) {
    if (!line.startsWith('{')) continue;
    const found = JSON.parse(line) as Record<string, number> & { what: string };
    report({
      who: 'diffusers',
      what: found.what,
      size: found['size']!,
      steps: found['steps']!,
      totalMs: found['total_ms']!,
      textMs: found['text_ms']!,
      stepMs: found['step_ms']!,
      decodeMs: found['decode_ms']!,
      peakGb: found['peak_gb']!,
    });
  }
}

/** Written once per folder. */
async function modelFiles(): Promise<ModelFiles> {
  const mark = join(values.model, `written-${values.t5}-${values.blocks ?? 'all'}.json`);
  const known = await readFile(mark, 'utf8').catch(() => null);
  if (known !== null) return JSON.parse(known) as ModelFiles;
  await mkdir(values.model, { recursive: true });
  const t5 = values.t5 as 'BF16' | 'F8_E4M3';
  const written = await writeRandomFlux(values.model, { t5, ...(blocks ? { blocks } : {}) });
  await writeFile(mark, JSON.stringify(written));
  return written;
}

function table(rows: readonly Measurement[]): string {
  const ms = (value: number | undefined): string =>
    value === undefined ? '' : value.toFixed(value < 100 ? 1 : 0);
  const cells = rows.map((row) => [
    row.who,
    row.error === undefined ? row.what : `${row.what}: ${row.error}`,
    row.size === undefined ? '' : String(row.size),
    row.steps === undefined ? '' : String(row.steps),
    ms(row.stepMs),
    ms(row.textMs),
    ms(row.decodeMs),
    ms(row.totalMs ?? row.loadMs ?? row.swapMs),
    row.peakGb === undefined ? '' : row.peakGb.toFixed(1),
  ]);
  const head = ['who', 'what', 'px', 'steps', 'step ms', 'text ms', 'decode ms', 'total ms', 'peak GB'];
  const line = (row: readonly string[]): string => `| ${row.join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...cells.map(line)].join('\n');
}
