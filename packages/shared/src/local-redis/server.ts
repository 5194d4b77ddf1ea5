import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { AtelierError } from '../errors.ts';
import { findRedisServer } from './find.ts';
import { replacePort, reservePort } from './port.ts';
import { ping } from './probe.ts';

/** The part of a pino logger that is used here. */
export interface RedisLog {
  info(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface StartOptions {
  /** The data folder; made when absent. One server at a time can use it. */
  dir: string;
  /** `auto`: a free port, kept for later starts of the same folder. */
  port?: number | 'auto';
  /** Path or name of the server; found by {@link findRedisServer} when absent. */
  binary?: string;
  log?: RedisLog;
}

export interface LocalRedis {
  readonly url: string;
  readonly port: number;
  readonly dir: string;
  readonly pid: number;
  /** Settles when the server has ended, by `stop` or by itself. */
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** Writes everything to disk and ends. */
  stop(): Promise<void>;
  /** Lets this process end while the server runs; the server then ends as well. */
  unref(): void;
}

const START_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 10_000;
const PORT_ATTEMPTS = 5;

/**
 * Starts a Redis server that only this machine can reach, and that ends with this process, however it ends.
 * Resolves when the server answers, its data loaded.
 * @throws AtelierError `conflict` when another server uses the folder, `queue_unavailable` when it does not start
 */
export async function startLocalRedis(options: StartOptions): Promise<LocalRedis> {
  const { dir, log } = options;
  const binary = options.binary ?? (await findRedisServer()).path;
  await mkdir(dir, { recursive: true });
  const wanted = options.port ?? 'auto';
  let port = await reservePort(dir, wanted);
  for (let attempt = 1; ; attempt++) {
    const server = new ServerProcess(binary, dir, port, log);
    const outcome = await server.ready();
    if (outcome === 'ready') return server;
    if (outcome === 'port taken' && wanted === 'auto' && attempt < PORT_ATTEMPTS) {
      port = await replacePort(dir, port);
      continue;
    }
    throw new AtelierError('queue_unavailable', `Redis did not start on port ${port}: ${server.lastWords()}`);
  }
}

/**
 * One run of the server. Two hazards shape how it is started:
 *
 * ### It must not outlive us
 * Nothing can be run after a SIGKILL, so a watcher shell waits for its standard input, which we hold open, to
 * close. The server starts, in the same process id, only once its watcher is there.
 *
 * ### A terminal's Ctrl-C must not reach it
 * It goes to the whole process group, and the server has to be the last to end. Both get a group of their own.
 */
class ServerProcess implements LocalRedis {
  readonly url: string;
  readonly port: number;
  readonly dir: string;
  readonly pid: number;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  readonly #child: ChildProcess;
  readonly #watcher: ChildProcess;
  readonly #lines: string[] = [];
  #stopping = false;
  #ended = false;

  constructor(binary: string, dir: string, port: number, log?: RedisLog) {
    this.url = `redis://127.0.0.1:${port}`;
    this.port = port;
    this.dir = dir;
    this.#child = spawn(
      '/bin/sh',
      ['-c', 'read -r _ && exec "$@"', 'redis', binary, ...settings(dir, port)],
      {
        detached: true,
        stdio: ['pipe', 'pipe', 'pipe'],
      },
    );
    this.pid = this.#child.pid ?? 0;
    this.#watcher = spawn(
      '/bin/sh',
      ['-c', 'read -r _; kill -CONT "$1"; kill -TERM "$1"', 'watch', `${this.pid}`],
      {
        detached: true,
        stdio: ['pipe', 'ignore', 'ignore'],
      },
    );
    this.#watcher.once('spawn', () => this.#child.stdin?.write('start\n'));
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      if (stream) createInterface({ input: stream }).on('line', (line) => this.#remember(line));
    }
    this.exited = new Promise((resolve) => {
      // `close`, not `exit`: by then its last words have been read.
      this.#child.once('close', (code, signal) => {
        this.#ended = true;
        // Before its pid can be given to another process.
        this.#watcher.kill('SIGKILL');
        if (!this.#stopping)
          log?.error({ code, signal, output: this.lastWords() }, 'Redis ended unexpectedly');
        resolve({ code, signal });
      });
    });
  }

  async ready(): Promise<'ready' | 'port taken' | 'failed'> {
    // Until it is ready, its end is reported by the caller.
    this.#stopping = true;
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (!this.#ended && Date.now() < deadline) {
      // Our server has to be the one that answers: wait until it says that it listens.
      if (
        this.#lines.some((line) => /ready to accept connections/i.test(line)) &&
        (await answers(this.url))
      ) {
        this.#stopping = false;
        return 'ready';
      }
      await sleep(10);
    }
    if (!this.#ended) await this.stop();
    return /address already in use/i.test(this.#lines.join('\n')) ? 'port taken' : 'failed';
  }

  lastWords(): string {
    return this.#lines.slice(-5).join(' | ') || 'no output';
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    if (!this.#ended) {
      // A paused process acts on SIGTERM only once it goes on.
      this.#child.kill('SIGCONT');
      this.#child.kill('SIGTERM');
      const kill = setTimeout(() => this.#child.kill('SIGKILL'), STOP_TIMEOUT_MS);
      await this.exited;
      clearTimeout(kill);
    }
  }

  unref(): void {
    for (const child of [this.#child, this.#watcher]) {
      child.unref();
      for (const stream of [child.stdin, child.stdout, child.stderr]) {
        (stream as { unref?: () => void } | null)?.unref?.();
      }
    }
  }

  #remember(line: string): void {
    this.#lines.push(line.trim());
    if (this.#lines.length > 50) this.#lines.shift();
  }
}

async function answers(url: string): Promise<boolean> {
  return ping(url).then(
    () => true,
    () => false,
  );
}

function settings(dir: string, port: number): string[] {
  return Object.entries({
    bind: '127.0.0.1',
    port: String(port),
    dir,
    daemonize: 'no',
    appendonly: 'yes',
    appendfsync: 'everysec',
    // Commands instead of a binary snapshot: whatever Redis or Valkey is found at the next start can read it.
    'aof-use-rdb-preamble': 'no',
    save: '',
    // BullMQ loses jobs when keys are evicted.
    'maxmemory-policy': 'noeviction',
  }).flatMap(([name, value]) => [`--${name}`, value]);
}
