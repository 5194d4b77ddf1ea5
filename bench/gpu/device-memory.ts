import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';

const BALLAST = `
import sys, torch
free, total = torch.cuda.mem_get_info()
held = torch.empty(free - int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("holding", flush=True)
sys.stdin.read()
`;

/** Watches how much of the first GPU's memory is in use, by all processes, in MiB; zeros without nvidia-smi. */
export class DeviceMemory {
  #base = 0;
  #now = 0;
  #peak = 0;
  readonly #poll: ChildProcess;

  private constructor(poll: ChildProcess) {
    this.#poll = poll;
    poll.on('error', () => {});
    poll.stdout?.on('data', (text: Buffer) => {
      for (const line of text.toString().trim().split('\n')) {
        this.#now = Number(line) || this.#now;
        this.#peak = Math.max(this.#peak, this.#now);
      }
    });
  }

  static async watch(): Promise<DeviceMemory> {
    const query = ['-i', '0', '--query-gpu=memory.used', '--format=csv,noheader,nounits', '-lms', '20'];
    const poll = spawn('nvidia-smi', query, { stdio: ['ignore', 'pipe', 'ignore'] });
    const memory = new DeviceMemory(poll);
    await Promise.race([once(poll, 'error'), once(poll.stdout, 'data')]);
    memory.#base = memory.#now;
    return memory;
  }

  /** Most in use since this was asked for last, beyond what was in use at the start; GB. */
  takePeak(): number {
    const peak = this.#peak;
    this.#peak = this.#now;
    return ((peak - this.#base) * 2 ** 20) / 1e9;
  }

  stop(): void {
    this.#poll.kill();
  }
}

/** Leaves `freeGib` GiB of the GPU's memory to others until it is stopped. @param python with torch */
export async function holdMemory(freeGib: number, python: string): Promise<{ stop: () => void }> {
  const child = spawn(python, ['-c', BALLAST, String(freeGib)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const [outcome] = (await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])) as unknown[];
  if (!String(outcome).startsWith('holding'))
    throw new Error(`the memory could not be held: ${String(outcome)}`);
  return { stop: () => void child.kill() };
}
