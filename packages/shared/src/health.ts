import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Registry } from 'prom-client';

/** Readiness by part: resolves when the part works, rejects with the reason when it does not. */
export type ReadinessChecks = Readonly<Record<string, () => Promise<unknown>>>;

export interface Readiness {
  ready: boolean;
  checks: Record<string, { ok: boolean; error?: string }>;
}

/** Runs all checks at once; one that has not answered within `timeoutMs` has failed. */
export async function checkReadiness(checks: ReadinessChecks, timeoutMs = 2_000): Promise<Readiness> {
  const results = await Promise.all(
    Object.entries(checks).map(async ([name, check]) => {
      const { promise: late, reject } = Promise.withResolvers<never>();
      const timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
      try {
        await Promise.race([check(), late]);
        return [name, { ok: true }] as const;
      } catch (error) {
        return [name, { ok: false, error: error instanceof Error ? error.message : String(error) }] as const;
      } finally {
        clearTimeout(timer);
      }
    }),
  );
  return { ready: results.every(([, { ok }]) => ok), checks: Object.fromEntries(results) };
}

export interface HealthServer {
  readonly port: number;
  close(): Promise<void>;
}

/** `/healthz` (the process lives), `/readyz` (it can work) and `/metrics` for a process without an API. */
export async function startHealthServer(options: {
  host: string;
  /** 0 chooses a free port. */
  port: number;
  checks: ReadinessChecks;
  registry: Registry;
}): Promise<HealthServer> {
  const server = createServer((request, response) => {
    const send = (status: number, type: string, body: string): void => {
      response.writeHead(status, { 'content-type': type }).end(body);
    };
    const json = (status: number, body: object): void =>
      send(status, 'application/json', JSON.stringify(body));
    const answer = async (): Promise<void> => {
      switch (new URL(request.url ?? '/', 'http://localhost').pathname) {
        case '/healthz':
          return json(200, { status: 'ok' });
        case '/readyz': {
          const readiness = await checkReadiness(options.checks);
          return json(readiness.ready ? 200 : 503, readiness);
        }
        case '/metrics':
          return send(200, options.registry.contentType, await options.registry.metrics());
        default:
          return json(404, { error: 'not found: /healthz, /readyz and /metrics are here' });
      }
    };
    answer().catch((error: unknown) => json(500, { error: String(error) }));
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.port, options.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
