import { type QueueList, type WorkerList, listWorkers } from '@atelier/shared';
import type { IRouter } from 'express';
import type { ApiDeps } from '../deps.ts';
import { resource } from '../resource.ts';
import { modelsView, queueView, workerView } from '../views.ts';

/** What an installation has and does: models, workers, queues. */
export function catalogRoutes(router: IRouter, { catalog, queues, redis }: ApiDeps): void {
  resource(router, '/v1/models', { get: (_req, res) => void res.json(modelsView(catalog)) });

  resource(router, '/v1/workers', {
    get: async (_req, res) => {
      const workers = await listWorkers(redis);
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
