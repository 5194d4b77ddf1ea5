import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type LocalRedis, startLocalRedis } from '../../packages/shared/src/local-redis/index.ts';

export interface TestRedis {
  readonly url: string;
  readonly port: number;
  readonly dir: string;
  /** Ends the server and removes its data. */
  stop(): Promise<void>;
  /** Ends the server, runs `between`, and starts it again on the same port with the same data. */
  restart(between?: () => Promise<void>): Promise<void>;
  /** Freezes the server: connections stay open, nothing is answered. */
  pause(): void;
  resume(): void;
}

/** A real Redis of its own for a test file; it ends with the test process at the latest. */
export async function startTestRedis(): Promise<TestRedis> {
  const dir = await mkdtemp(join(tmpdir(), 'atelier-redis-'));
  let server: LocalRedis;
  const start = async () => {
    server = await startLocalRedis({ dir });
    // A test that fails before its cleanup must not keep jest from ending.
    server.unref();
    return server;
  };
  const { url, port } = await start();
  return {
    url,
    port,
    dir,
    stop: async () => {
      await server.stop();
      await rm(dir, { recursive: true, force: true });
    },
    restart: async (between) => {
      await server.stop();
      await between?.();
      await start();
    },
    pause: () => void process.kill(server.pid, 'SIGSTOP'),
    resume: () => void process.kill(server.pid, 'SIGCONT'),
  };
}
