import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EngineProcess, type EngineRequest } from '@atelier/flux';
import { bundledModel } from './bundled-model.ts';

export interface EngineRound {
  size: number;
  /** Whole pipeline, text to pixels, one value a run. */
  runs: number[];
  /** Denoising alone, per step, one value a run. */
  stepMs: number[];
  rssMb: number;
}

export interface EngineBench {
  /** First load: weights are widened into an empty cache, sessions created. */
  coldLoadMs: number;
  /** Load with the cache in place. */
  warmLoadMs: number;
  rounds: EngineRound[];
}

export interface BenchOptions {
  sizes: readonly number[];
  steps: number;
  runs: number;
  threads: number;
  prompt: string;
  seed: number;
  guidance: number;
}

/** Measures the engine process with the bundled model; the first picture of each size is a warm-up. */
export async function benchEngine(options: BenchOptions): Promise<EngineBench> {
  const cacheDir = await mkdtemp(join(tmpdir(), 'atelier-bench-'));
  const load = {
    name: 'mini',
    files: bundledModel(),
    cacheDir,
    maxSequenceLength: 32,
    threads: options.threads,
  };
  const cold = EngineProcess.spawn();
  const { loadMs: coldLoadMs } = await cold.load(load);
  await cold.close();
  const engine = EngineProcess.spawn();
  try {
    const { loadMs: warmLoadMs } = await engine.load(load);
    const rounds: EngineRound[] = [];
    for (const size of options.sizes) {
      const request: EngineRequest = {
        prompt: options.prompt,
        width: size,
        height: size,
        steps: options.steps,
        guidance: options.guidance,
        seed: options.seed,
      };
      await engine.generate(request);
      const round: EngineRound = { size, runs: [], stepMs: [], rssMb: 0 };
      for (let run = 0; run < options.runs; run++) {
        const { timings } = await engine.generate(request);
        round.runs.push(timings.total_ms);
        round.stepMs.push(timings.denoise_ms / options.steps);
      }
      round.rssMb = (await engine.stats()).rssBytes / 1e6;
      rounds.push(round);
    }
    return { coldLoadMs, warmLoadMs, rounds };
  } finally {
    await engine.close();
    await rm(cacheDir, { recursive: true });
  }
}
