import { AtelierError, type JobKind } from '@atelier/shared';
import type { IRouter, Request, Response } from 'express';
import { tenantOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { streamEvents } from '../events.ts';
import { type RecordOf, asJob, readJob } from '../job-record.ts';
import { logJobId } from '../logging.ts';
import { resource } from '../resource.ts';

/** Reads the job that a path names, and puts its id on the log line. @throws AtelierError not_found */
export function loadJob<Kind extends JobKind>(
  { jobs }: Pick<ApiDeps, 'jobs'>,
  kind: Kind,
  req: Request,
  res: Response,
): Promise<RecordOf<Kind>> {
  const id = String(req.params['id']);
  logJobId(res, id);
  return readJob(jobs, kind, { tenant: tenantOf(req), id });
}

/** What can be done with a job of either kind: look at it, cancel it, follow it. */
export function jobRoutes<Kind extends JobKind>(
  router: IRouter,
  deps: ApiDeps,
  kind: Kind,
  render: (req: Request, record: RecordOf<Kind>) => Promise<unknown>,
): void {
  const { jobs, queues } = deps;
  const path = `/v1/${kind}s/:id`;

  resource(router, path, {
    get: async (req, res) => {
      res.json(await render(req, await loadJob(deps, kind, req, res)));
    },
  });

  resource(router, `${path}/cancel`, {
    post: async (req, res) => {
      const { tenant, id } = await loadJob(deps, kind, req, res);
      const record = asJob((await jobs.requestCancel({ tenant, id })).record, kind, id);
      if (record.status === 'succeeded' || record.status === 'failed') {
        throw new AtelierError(
          'conflict',
          `The ${kind} ${id} has ${record.status}; only queued and running ones can be canceled`,
        );
      }
      // The queue entry is of no use any more; a worker that takes it all the same reads the record first.
      if (record.status === 'canceled') await queues.remove({ tenant, id }, kind).catch(() => false);
      res.status(record.status === 'canceled' ? 200 : 202).json(await render(req, record));
    },
  });

  resource(router, `${path}/events`, {
    get: async (req, res) => {
      const record = await loadJob(deps, kind, req, res);
      await streamEvents(deps, req, res, record, (current) => render(req, current));
    },
  });
}
