import { randomUUID } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Response } from 'express';
import { pinoHttp } from 'pino-http';
import { identityForLog } from './auth.ts';
import type { ApiDeps } from './deps.ts';

const REQUEST_ID = /^[\w.:-]{1,128}$/;
const PROBES = new Set(['/healthz', '/readyz', '/metrics']);

/**
 * One line per request, with the id that the answer carries as X-Request-Id, the tenant and the id of its key, and the
 * id of the job that it is about.
 */
export function requestLog(log: ApiDeps['log']) {
  return pinoHttp({
    logger: log,
    genReqId: (req, res) => {
      const given = req.headers['x-request-id'];
      const id = typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID();
      res.setHeader('X-Request-Id', id);
      return id;
    },
    // Named one by one: headers hold keys.
    serializers: {
      req: (req: { id: string; method: string; url: string; remoteAddress?: string }) => ({
        id: req.id,
        method: req.method,
        url: req.url,
        remote: req.remoteAddress,
      }),
      res: (res: { statusCode: number }) => ({ status: res.statusCode }),
    },
    customLogLevel: (req, res, error) => {
      // What a probe finds is in its answer, every few seconds.
      if (isProbe(req)) return 'debug';
      return error || res.statusCode >= 500 ? 'error' : 'info';
    },
    customSuccessMessage: (req, res) => `${req.method} ${req.url} ${res.statusCode}`,
    customErrorMessage: (req, res) => `${req.method} ${req.url} ${res.statusCode}`,
    customProps: (req, res) => {
      const jobId = jobIds.get(res);
      return { ...identityForLog(req), ...(jobId === undefined ? {} : { job_id: jobId }) };
    },
  });
}

const jobIds = new WeakMap<ServerResponse, string>();

/** Puts the id of the job that a request is about on its log line. */
export function logJobId(res: Response, id: string): void {
  jobIds.set(res, id);
}

function isProbe(req: IncomingMessage): boolean {
  return PROBES.has((req.url ?? '').split('?', 1)[0]!);
}
