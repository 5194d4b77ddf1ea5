import { parseArgs } from 'node:util';
import { benchEngine, type BenchOptions } from './engine.ts';
import { benchPeer } from './peer.ts';
import { benchService } from './service.ts';
import { median } from './statistics.ts';

/*
 * npm run bench: the bundled model on the CPU, this engine and diffusers on PyTorch in turns on the same machine,
 * threads, weights, prompt and steps. The peer needs a Python with test/golden/requirements.txt; PYTHON names it.
 */

const { values } = parseArgs({
  options: {
    sizes: { type: 'string', default: '128,256' },
    steps: { type: 'string', default: '20' },
    runs: { type: 'string', default: '3' },
    rounds: { type: 'string', default: '2' },
    threads: { type: 'string', default: '2' },
    jobs: { type: 'string', default: '20' },
    python: { type: 'string', default: process.env['PYTHON'] ?? 'python3' },
  },
});

const options: BenchOptions = {
  sizes: values.sizes.split(',').map(Number),
  steps: Number(values.steps),
  runs: Number(values.runs),
  threads: Number(values.threads),
  prompt: 'a red apple on a blue background',
  seed: 42,
  guidance: 3.5,
};

const ours = new Map<number, { runs: number[]; steps: number[]; rss: number }>();
const peers = new Map<number, { runs: number[]; steps: number[]; rss: number }>();
const loads = { cold: [] as number[], warm: [] as number[], peer: [] as number[] };
let torch: string | null = null;

// Rounds alternate, so that a machine that slows down slows both.
for (let round = 0; round < Number(values.rounds); round++) {
  const engine = await benchEngine(options);
  loads.cold.push(engine.coldLoadMs);
  loads.warm.push(engine.warmLoadMs);
  for (const { size, runs, stepMs, rssMb } of engine.rounds) collect(ours, size, runs, stepMs, rssMb);
  const peer = await benchPeer(values.python, options);
  for (const { size, runs, stepMs, rssMb, loadMs, torch: version } of peer ?? []) {
    torch = version;
    loads.peer.push(loadMs);
    collect(peers, size, runs, [stepMs], rssMb);
  }
}

console.log(
  `\n${options.steps} steps, ${options.threads} threads, medians of ${options.runs * Number(values.rounds)} runs`,
);
console.table(
  options.sizes.map((size) => {
    const own = ours.get(size)!;
    const peer = peers.get(size);
    return {
      picture: `${size} x ${size}`,
      'atelier ms': round1(median(own.runs)),
      'diffusers ms': peer ? round1(median(peer.runs)) : '-',
      ratio: peer ? round2(median(own.runs) / median(peer.runs)) : '-',
      'atelier step ms': round1(median(own.steps)),
      'diffusers step ms': peer ? round1(median(peer.steps)) : '-',
      'step ratio': peer ? round2(median(own.steps) / median(peer.steps)) : '-',
      'atelier MB': Math.round(own.rss),
      'diffusers MB': peer ? Math.round(peer.rss) : '-',
    };
  }),
);
console.log(
  `load: ${Math.round(median(loads.cold))} ms into an empty cache, ${Math.round(median(loads.warm))} ms from it` +
    (loads.peer.length ? `; diffusers ${Math.round(median(loads.peer))} ms with imports` : ''),
);
console.log(
  torch
    ? `peer: diffusers on torch ${torch}`
    : `peer: none, ${values.python} lacks the packages of test/golden/requirements.txt (PYTHON=... names another)`,
);

const service = await benchService(Number(values.jobs), 4);
console.log(
  `service, ${values.jobs} jobs: ${round1(median(service.overheadMs))} ms (at most ` +
    `${round1(Math.max(...service.overheadMs))}) in the worker outside the engine; ` +
    `${round1(median(service.roundTripMs))} ms from request to answer outside the engine`,
);

function collect(
  into: Map<number, { runs: number[]; steps: number[]; rss: number }>,
  size: number,
  runs: number[],
  steps: number[],
  rss: number,
): void {
  const entry = into.get(size) ?? { runs: [], steps: [], rss: 0 };
  entry.runs.push(...runs);
  entry.steps.push(...steps);
  entry.rss = Math.max(entry.rss, rss);
  into.set(size, entry);
}

function round1(value: number): number {
  return Math.round(value * 10) / 10;
}

function round2(value: number): number {
  return Math.round(value * 100) / 100;
}
