import { type Server, createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ApiKeyStore } from '@atelier/shared';
import { createApp } from './app.ts';
import type { ApiDeps } from './deps.ts';
import { Submissions } from './submission.ts';
import { WebhookDispatcher } from './webhooks/dispatcher.ts';

export interface ApiServer {
  /** Where it listens, without a slash at the end. */
  readonly url: string;
  /** Takes no more connections, ends waits and event streams, and resolves when every answer is out. */
  close(): Promise<void>;
}

/** Until the last byte of a request is there: a file of some GiB over a slow line. */
const REQUEST_TIMEOUT_MS = 60 * 60_000;

/**
 * Starts the API: binds the address and repairs queue, records and indexes now and whenever Redis comes back.
 *
 * @param port 0 chooses a free one
 * @throws Error of the bind, such as EADDRINUSE
 */
export async function startServer(
  parts: Omit<ApiDeps, 'shutdown'>,
  { host, port }: { host: string; port: number },
): Promise<ApiServer> {
  const shutdown = new AbortController();
  const deps: ApiDeps = { ...parts, shutdown: shutdown.signal };
  const submissions = new Submissions(deps);
  const server = createServer({ requestTimeout: REQUEST_TIMEOUT_MS }, createApp(deps, submissions));
  await listen(server, host, port);

  const repair = () => {
    void repairQueue(deps, submissions);
    void repairLoras(deps);
  };
  deps.redis.on('ready', repair);
  const webhooks = deps.settings.webhooks.deliver ? new WebhookDispatcher(deps) : null;
  if (deps.redis.status === 'ready') repair();

  const { port: bound } = server.address() as AddressInfo;
  const name = host.includes(':') ? `[${host}]` : host;
  return {
    url: `http://${name}:${bound}`,
    close: async () => {
      deps.redis.off('ready', repair);
      const closed = new Promise<void>((resolve) => {
        server.close(() => resolve());
      });
      shutdown.abort();
      // A connection that becomes idle later would stay open for its keep-alive time.
      const sweep = setInterval(() => server.closeIdleConnections(), 50);
      await Promise.all([webhooks?.close(), closed.finally(() => clearInterval(sweep))]);
    },
  };
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once('error', reject);
  server.listen(port, host, resolve);
  await promise;
  server.off('error', reject);
}

/** Not accepted jobs are taken back first: the reconciler would take them for forgotten ones. */
async function repairQueue({ jobs, log, queues }: ApiDeps, submissions: Submissions): Promise<void> {
  try {
    await submissions.takeBack();
    const ids = [...(await queues.reconcile(jobs)), ...(await queues.reconcile(jobs, 'training'))];
    if (ids.length > 0)
      log.warn({ job_ids: ids.slice(0, 100), count: ids.length }, 'jobs were missing in the queue');
  } catch (error) {
    log.warn({ err: error }, 'queue and records could not be compared; the next reconnect tries again');
  }
}

async function repairLoras({ log, loras, redis }: ApiDeps): Promise<void> {
  try {
    for (const tenant of (await new ApiKeyStore(redis).tenants()).keys()) await loras.rebuild(tenant);
  } catch (error) {
    log.warn(
      { err: error },
      'the index of LoRAs could not be compared with the store; the next reconnect tries again',
    );
  }
}
