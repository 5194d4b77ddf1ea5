import { isMainThread } from 'node:worker_threads';

/**
 * Preloaded into every service that the studio starts. The studio holds the other end of standard input: when that
 * closes, the studio is gone, possibly by a SIGKILL that left it no time to stop anything, and the service ends too.
 */
const GRACE_MS = 10_000;

// Threads of the service load this as well, and have a standard input of their own that closes at once.
if (isMainThread) {
  process.stdin.once('close', () => {
    process.kill(process.pid, 'SIGTERM');
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), GRACE_MS).unref();
  });
  process.stdin.on('error', () => {});
  process.stdin.resume();
  // Watching must not keep a service alive that has finished; standard input is a socket here.
  (process.stdin as unknown as { unref(): void }).unref();
}
