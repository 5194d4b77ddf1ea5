import { cp, mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, extname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { EngineProcess, TRAINING_DEFAULTS, type TrainingOptions } from '@atelier/flux';
import { bundledModel } from './bundled-model.ts';
import { median } from './statistics.ts';
import { trainingPeer } from './training-peer.ts';

/*
 * npm run bench:training: an optimizer step on the bundled model and examples/ink-wash, by this engine and by PyTorch
 * with diffusers and peft, in turns on the same machine, threads and pictures, encodings cached on both sides. The
 * engine computes blocks anew in its backward pass; the peer is timed with gradient checkpointing and without. The
 * peer needs a Python with test/golden/requirements.txt; PYTHON names it.
 */

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '5' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: '2' },
    batch: { type: 'string', default: '4' },
    resolution: { type: 'string', default: '128' },
    python: { type: 'string', default: process.env['PYTHON'] ?? 'python3' },
  },
});
const [steps, threads, resolution] = [values.steps, values.threads, values.resolution].map(Number) as [
  number,
  number,
  number,
];

type Plan = Pick<TrainingOptions, 'gradientAccumulationSteps' | 'loraRank' | 'targets'>;
const PLANS: readonly Plan[] = [
  { gradientAccumulationSteps: 1, loraRank: 4, targets: 'attention' },
  { gradientAccumulationSteps: 4, loraRank: 4, targets: 'attention' },
  { gradientAccumulationSteps: 1, loraRank: 8, targets: 'all' },
];
const EXAMPLE = join(import.meta.dirname, '..', 'examples', 'ink-wash');

/** What one side measured: of each step its time and loss, and the process's peak memory. */
interface Measured {
  stepMs: number[];
  losses: number[];
  peakMb: number;
}
const SIDES = ['atelier', 'recomputing', 'keeping'] as const;

const dir = await mkdtemp(join(tmpdir(), 'atelier-bench-'));
let torch: string | null = null;
try {
  const rows = [];
  for (const plan of PLANS) {
    const options = { ...TRAINING_DEFAULTS, ...plan, batchSize: Number(values.batch), maxEpochs: 1 };
    const perStep = options.batchSize * options.gradientAccumulationSteps;
    const dataset = await firstPictures(perStep * (steps + 1));
    const sides = Object.fromEntries(
      SIDES.map((side): [string, Measured] => [side, { stepMs: [], losses: [], peakMb: 0 }]),
    ) as Record<(typeof SIDES)[number], Measured>;
    // Rounds alternate, so that a machine that slows down slows both.
    for (let round = 0; round < Number(values.rounds); round++) {
      collect(sides.atelier, await trainHere(dataset, options));
      const peer = await trainingPeer(values.python, { dataset, resolution, threads, steps, ...options });
      if (!peer) continue;
      torch = peer.torch;
      collect(sides.recomputing, peer.recomputing);
      collect(sides.keeping, peer.keeping);
    }
    rows.push(row(plan, sides));
  }
  console.log(
    `\nbatch ${values.batch}, ${resolution} x ${resolution}, ${threads} threads, medians of ` +
      `${steps * Number(values.rounds)} steps; PyTorch with gradient checkpointing and, in brackets, without`,
  );
  console.table(rows);
  console.log(
    torch
      ? `peer: diffusers and peft on torch ${torch}`
      : `peer: none, ${values.python} lacks the packages of test/golden/requirements.txt (PYTHON=... names another)`,
  );
} finally {
  await rm(dir, { recursive: true });
}

/** A dataset of the example's first `count` pictures. */
async function firstPictures(count: number): Promise<string> {
  const folder = join(dir, String(count));
  await mkdir(join(folder, 'images'), { recursive: true });
  await mkdir(join(folder, 'prompts'), { recursive: true });
  const names = (await readdir(join(EXAMPLE, 'images'))).sort().slice(0, count);
  if (names.length < count) throw new Error(`${EXAMPLE} has ${names.length} pictures; ${count} are needed`);
  for (const name of names) {
    const caption = `${basename(name, extname(name))}.txt`;
    await cp(join(EXAMPLE, 'images', name), join(folder, 'images', name));
    await cp(join(EXAMPLE, 'prompts', caption), join(folder, 'prompts', caption));
  }
  return folder;
}

/** An epoch in an engine process of its own; its first step is a warm-up. */
async function trainHere(dataset: string, options: TrainingOptions): Promise<Measured> {
  const engine = EngineProcess.spawn();
  const measured: Measured = { stepMs: [], losses: [], peakMb: 0 };
  const model = { name: 'mini', files: bundledModel(), cacheDir: dir, maxSequenceLength: 32, threads };
  try {
    await engine.train(
      { model, dataset, outputDir: join(dir, 'out'), options, resolution, saveEveryEpochs: 1 },
      {
        onEvent: (event) => {
          if (event.type !== 'step' || event.step === 1) return;
          measured.stepMs.push(event.ms);
          measured.losses.push(event.loss);
        },
      },
    );
    measured.peakMb = await peakMemory(engine);
    return measured;
  } finally {
    await engine.close();
  }
}

/** In MB; where the system does not tell the peak, what the process has now. */
async function peakMemory(engine: EngineProcess): Promise<number> {
  const status = await readFile(`/proc/${engine.pid}/status`, 'utf8').catch(() => '');
  const peak = /^VmHWM:\s+(\d+) kB$/m.exec(status);
  return peak ? (Number(peak[1]) * 1024) / 1e6 : (await engine.stats()).rssBytes / 1e6;
}

function collect(into: Measured, from: Measured): void {
  into.stepMs.push(...from.stepMs);
  into.losses.push(...from.losses);
  into.peakMb = Math.max(into.peakMb, from.peakMb);
}

function row(plan: Plan, { atelier, recomputing, keeping }: Record<(typeof SIDES)[number], Measured>) {
  const seconds = ({ stepMs }: Measured): string =>
    stepMs.length > 0 ? (median(stepMs) / 1e3).toFixed(2) : '-';
  const ratio = ({ stepMs }: Measured): string =>
    stepMs.length > 0 ? (median(atelier.stepMs) / median(stepMs)).toFixed(2) : '-';
  const loss = ({ losses }: Measured): string =>
    losses.length > 0 ? (losses.reduce((sum, one) => sum + one, 0) / losses.length).toFixed(2) : '-';
  return {
    LoRA: `rank ${plan.loraRank} on ${plan.targets}, accumulation ${plan.gradientAccumulationSteps}`,
    'atelier s': seconds(atelier),
    'PyTorch s': `${seconds(recomputing)} (${seconds(keeping)})`,
    ratio: `${ratio(recomputing)} (${ratio(keeping)})`,
    'mean loss, noise of its own': `${loss(atelier)}, ${loss(recomputing)}`,
    'atelier MB': Math.round(atelier.peakMb),
    'PyTorch MB': `${Math.round(recomputing.peakMb)} (${Math.round(keeping.peakMb)})`,
  };
}
