import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

export interface ServiceSpec {
  name: string;
  /** Absolute path of the program. */
  script: string;
  /** How long it may take to finish what it does after SIGTERM. */
  graceMs: number;
}

export interface ServiceExit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** One service as a child process, which never outlives this one. */
export class ServiceProcess {
  readonly name: string;
  readonly exited: Promise<ServiceExit>;
  readonly #child: ChildProcess;
  readonly #graceMs: number;
  #ended = false;

  constructor(
    spec: ServiceSpec,
    options: { cwd: string; env: NodeJS.ProcessEnv; onLine: (line: string) => void },
  ) {
    this.name = spec.name;
    this.#graceMs = spec.graceMs;
    const guard = new URL('./exit-with-parent.ts', import.meta.url).href;
    this.#child = spawn(process.execPath, ['--import', guard, spec.script], {
      cwd: options.cwd,
      env: options.env,
      // Its own process group: a terminal's Ctrl-C goes to the studio alone, which stops the services in order.
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      if (stream) createInterface({ input: stream }).on('line', options.onLine);
    }
    this.exited = new Promise((resolve) => {
      const end = (exit: ServiceExit) => {
        this.#ended = true;
        resolve(exit);
      };
      this.#child.once('error', () => end({ code: null, signal: null }));
      this.#child.once('close', (code, signal) => end({ code, signal }));
    });
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  /** Asks it to finish, and kills it when it does not within its time. */
  async stop(): Promise<void> {
    if (this.#ended) return;
    this.#child.kill('SIGTERM');
    const timer = setTimeout(() => this.kill(), this.#graceMs);
    await this.exited;
    clearTimeout(timer);
  }

  /** Ends it at once. */
  kill(): void {
    if (!this.#ended) this.#child.kill('SIGKILL');
  }
}
