import { AtelierError, ERRORS, type ErrorCode, checkReadiness, pingRedis } from '@atelier/shared';
import type { IRouter } from 'express';
import type { Registry } from 'prom-client';
import type { ApiDeps } from '../deps.ts';
import { openApiDocument } from '../openapi/document.ts';
import { problemType } from '../problem.ts';
import { resource } from '../resource.ts';

/** A probe that waits longer than its own timeout reports nothing. */
const READINESS_TIMEOUT_MS = 1_000;

/** What operators and tools read; none of it needs a key. */
export function operationRoutes(router: IRouter, { redis, store }: ApiDeps, registry: Registry): void {
  resource(router, '/healthz', { get: (_req, res) => void res.json({ status: 'ok' }) });

  const checks = { redis: () => pingRedis(redis, READINESS_TIMEOUT_MS), store: () => store.ping() };
  resource(router, '/readyz', {
    get: async (_req, res) => {
      const readiness = await checkReadiness(checks, READINESS_TIMEOUT_MS);
      res.status(readiness.ready ? 200 : 503).json(readiness);
    },
  });

  resource(router, '/metrics', {
    get: async (_req, res) => {
      res.type(registry.contentType).send(await registry.metrics());
    },
  });

  resource(router, '/openapi.json', { get: (_req, res) => void res.json(openApiDocument()) });

  resource(router, '/problems/:code', {
    get: (req, res) => {
      const code = String(req.params['code']);
      if (!Object.hasOwn(ERRORS, code)) {
        throw new AtelierError(
          'not_found',
          `No problem has this code; there are ${Object.keys(ERRORS).join(', ')}`,
        );
      }
      res.json({ type: problemType(code as ErrorCode), code, ...ERRORS[code as ErrorCode] });
    },
  });
}
