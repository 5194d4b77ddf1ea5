import { closeSync, openSync } from 'node:fs';
import { Worker, isMainThread } from 'node:worker_threads';

/**
 * Preloaded into every service that the studio starts. The studio holds the other end of standard input: when that
 * closes, the studio is gone, possibly by a SIGKILL that left it no time to stop anything, and the service ends too.
 */
const GRACE_MS = 10_000;

function parentIsGone(): void {
  // Nobody reads the output any more, and a logger that flushes into a broken pipe at exit retries for ever.
  for (const fd of [1, 2]) {
    closeSync(fd);
    // The lowest number that is free, so the one that was just closed.
    openSync('/dev/null', 'w');
  }
  // From a thread of its own, for a main thread that is stuck.
  const lastResort = `setTimeout(() => process.kill(process.pid, 'SIGKILL'), ${GRACE_MS})`;
  new Worker(lastResort, { eval: true, execArgv: [] }).unref();
  process.kill(process.pid, 'SIGTERM');
}

// Threads of the service load this as well, and have a standard input of their own that closes at once.
if (isMainThread) {
  process.stdin.once('close', parentIsGone);
  process.stdin.on('error', () => {});
  process.stdin.resume();
  // Watching must not keep a service alive that has finished; standard input is a socket here.
  (process.stdin as unknown as { unref(): void }).unref();
}
