import type { Logger } from 'pino';

export interface Closer {
  name: string;
  close: () => Promise<unknown> | void;
}

export interface ShutdownOptions {
  log: Logger;
  /** Bound of all closers together; what is still open then is left to the operating system. */
  timeoutMs: number;
  /** Run in order; one that fails does not keep the others from running. */
  closers: readonly Closer[];
}

/**
 * On SIGTERM or SIGINT runs the closers and exits with 0, or with 1 when one failed or the time ran out. A second
 * signal exits at once. Returns the function that the first signal calls.
 */
export function onShutdown(options: ShutdownOptions): (reason: string) => void {
  const { log, timeoutMs, closers } = options;
  let stopping = false;
  const stop = (reason: string): void => {
    if (stopping) {
      log.warn({ reason }, 'exiting at once');
      process.exit(1);
    }
    stopping = true;
    log.info({ reason, timeout_ms: timeoutMs }, 'shutting down');
    setTimeout(() => {
      log.error('shutdown took too long');
      process.exit(1);
    }, timeoutMs).unref();
    void closeAllAndExit(log, closers);
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  return stop;
}

async function closeAllAndExit(log: Logger, closers: readonly Closer[]): Promise<never> {
  let clean = true;
  for (const { name, close } of closers) {
    try {
      await close();
    } catch (err) {
      clean = false;
      log.error({ err, closer: name }, 'could not be closed');
    }
  }
  log.info({ clean }, 'stopped');
  process.exit(clean ? 0 : 1);
}
