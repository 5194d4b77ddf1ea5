import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { BenchOptions } from './engine.ts';

export interface PeerRound {
  size: number;
  runs: number[];
  stepMs: number;
  loadMs: number;
  rssMb: number;
  torch: string;
}

/**
 * The same pictures by diffusers on PyTorch, same weights, threads and steps. null when `python` lacks the packages
 * of test/golden/requirements.txt.
 */
export async function benchPeer(python: string, options: BenchOptions): Promise<PeerRound[] | null> {
  const run = promisify(execFile);
  const available = await run(python, ['-c', 'import torch, diffusers, transformers']).catch(() => null);
  if (!available) return null;
  const flags = {
    sizes: options.sizes.join(','),
    steps: options.steps,
    runs: options.runs,
    threads: options.threads,
    prompt: options.prompt,
    seed: options.seed,
    guidance: options.guidance,
  };
  const script = join(import.meta.dirname, 'peer.py');
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const { stdout } = await run(python, [script, ...args]);
  return stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .map((round) => ({
      size: round['size'] as number,
      runs: round['runs'] as number[],
      stepMs: round['step_ms'] as number,
      loadMs: round['load_ms'] as number,
      rssMb: round['rss_mb'] as number,
      torch: round['torch'] as string,
    }));
}
