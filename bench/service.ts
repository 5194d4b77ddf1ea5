import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export interface ServiceBench {
  /** Per job: what the worker spent outside the engine, from claiming to publishing. */
  overheadMs: number[];
  /** Per job: from the request to the answer with the finished job, less the engine's own time. */
  roundTripMs: number[];
}

interface Job {
  status: string;
  timings: Record<string, number>;
}

const PHASES = ['load_ms', 'text_ms', 'denoise_ms', 'decode_ms'];
const READY_WITHIN_MS = 60_000;

/** Runs `jobs` pictures through a whole studio with a data folder of its own; the first three are warm-up. */
export async function benchService(jobs: number, steps: number): Promise<ServiceBench> {
  const dataDir = await mkdtemp(join(tmpdir(), 'atelier-bench-'));
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const studio = spawn(process.execPath, [join(import.meta.dirname, '../apps/cli/src/main.ts'), 'up'], {
    env: { ...process.env, ATELIER_PORT: String(port), ATELIER_DATA_DIR: dataDir },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  try {
    await ready(url, studio);
    const result: ServiceBench = { overheadMs: [], roundTripMs: [] };
    for (let i = -3; i < jobs; i++) {
      const started = performance.now();
      const response = await fetch(`${url}/v1/generations`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json', Prefer: 'wait=60' },
        body: JSON.stringify({ prompt: 'a red apple on a blue background', seed: 1, steps }),
      });
      const job = (await response.json()) as Job;
      const elapsed = performance.now() - started;
      if (job.status !== 'succeeded') throw new Error(`a job did not succeed: ${JSON.stringify(job)}`);
      if (i < 0) continue;
      const engine = PHASES.reduce((sum, phase) => sum + (job.timings[phase] ?? 0), 0);
      result.overheadMs.push(job.timings['overhead_ms']!);
      result.roundTripMs.push(elapsed - engine);
    }
    return result;
  } finally {
    studio.kill('SIGINT');
    if (studio.exitCode === null) await once(studio, 'exit');
    await rm(dataDir, { recursive: true });
  }
}

async function ready(url: string, studio: ChildProcess): Promise<void> {
  for (const deadline = performance.now() + READY_WITHIN_MS; performance.now() < deadline;) {
    if (studio.exitCode !== null) throw new Error(`the studio ended with code ${studio.exitCode}`);
    const answer = await fetch(`${url}/v1/workers`).catch(() => null);
    const body = answer?.ok ? await answer.text() : '';
    if (body.includes('"generation"')) return;
    await sleep(200);
  }
  throw new Error(`the studio was not ready within ${READY_WITHIN_MS} ms`);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}
