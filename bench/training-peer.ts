import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { TrainingOptions } from '@atelier/flux';

export interface PeerPlan extends TrainingOptions {
  dataset: string;
  resolution: number;
  threads: number;
  /** Timed ones, after one untimed. */
  steps: number;
}

export interface PeerSteps {
  stepMs: number[];
  losses: number[];
  peakMb: number;
}

/**
 * The same training by PyTorch with diffusers and peft, with gradient checkpointing and without. null when `python`
 * lacks the packages of test/golden/requirements.txt.
 */
export async function trainingPeer(
  python: string,
  plan: PeerPlan,
): Promise<{ torch: string; recomputing: PeerSteps; keeping: PeerSteps } | null> {
  const run = promisify(execFile);
  const available = await run(python, ['-c', 'import torch, diffusers, transformers, peft']).catch(
    () => null,
  );
  if (!available) return null;
  const flags = {
    dataset: plan.dataset,
    resolution: plan.resolution,
    threads: plan.threads,
    steps: plan.steps,
    batch: plan.batchSize,
    accumulation: plan.gradientAccumulationSteps,
    rank: plan.loraRank,
    alpha: plan.loraAlpha,
    targets: plan.targets,
    'learning-rate': plan.learningRate,
    guidance: plan.guidance,
  };
  const script = join(import.meta.dirname, 'training_peer.py');
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const { stdout } = await run(python, [script, ...args]);
  const lines = stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  const of = (checkpointing: boolean): PeerSteps => {
    const line = lines.find(({ gradient_checkpointing }) => gradient_checkpointing === checkpointing);
    if (!line) throw new Error(`${script} printed no measurement: ${stdout}`);
    return {
      stepMs: line['step_ms'] as number[],
      losses: line['losses'] as number[],
      peakMb: line['peak_mb'] as number,
    };
  };
  return { torch: lines[0]!['torch'] as string, recomputing: of(true), keeping: of(false) };
}
