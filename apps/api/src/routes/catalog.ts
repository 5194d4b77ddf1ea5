import { type QueueList, type WorkerInfo, type WorkerList, listWorkers } from '@atelier/shared';
import type { IRouter, Request } from 'express';
import { hasScope, identityOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { resource } from '../resource.ts';
import { modelsView, queueView, workerView } from '../views.ts';

/** What an installation has and does: models, workers, queues. */
export function catalogRoutes(router: IRouter, { catalog, jobs, queues, redis }: ApiDeps): void {
  /** Workers are everybody's; the id of the job in hand is its tenant's, and an operator's. */
  const visible = async (req: Request, worker: WorkerInfo): Promise<WorkerInfo> => {
    const identity = identityOf(req);
    const { current_job: id } = worker;
    if (id === null || hasScope(identity, 'admin')) return worker;
    return (await jobs.get({ tenant: identity.tenant, id })) ? worker : { ...worker, current_job: null };
  };

  resource(router, '/v1/models', { get: (_req, res) => void res.json(modelsView(catalog)) });

  resource(router, '/v1/workers', {
    get: async (req, res) => {
      const workers = await Promise.all((await listWorkers(redis)).map((worker) => visible(req, worker)));
      res.json({ data: workers.map(workerView) } satisfies WorkerList);
    },
  });

  resource(router, '/v1/queue', {
    get: async (_req, res) => {
      const [generation, training] = await Promise.all([
        queues.queueCounts('generation'),
        queues.queueCounts('training'),
      ]);
      res.json({ generation: queueView(generation), training: queueView(training) } satisfies QueueList);
    },
  });
}
