import { buffer } from 'node:stream/consumers';
import {
  type TrainingList,
  TrainingMetrics,
  type TrainingRecord,
  TrainingRequest,
  trainingMetricsKey,
} from '@atelier/shared';
import type { IRouter, Request } from 'express';
import { tenantOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { jsonBody } from '../json-body.ts';
import { listJobs } from '../list.ts';
import { logJobId } from '../logging.ts';
import { originOf } from '../origin.ts';
import { resource } from '../resource.ts';
import type { Submissions } from '../submission.ts';
import { checkpointsView, sendSample } from '../training-samples.ts';
import { validate } from '../validation/validate.ts';
import { trainingView } from '../views.ts';
import { webhookOf } from '../webhooks/request.ts';
import { jobRoutes, loadJob } from './jobs.ts';

/** Trainings: submit, look at, follow, cancel, and what they measured and drew. */
export function trainingRoutes(router: IRouter, deps: ApiDeps, submissions: Submissions): void {
  const { config, jobs, queues, settings, store } = deps;

  const render = async (_req: Request, record: TrainingRecord) => {
    const waits = record.status === 'queued';
    return trainingView(record, waits ? await queues.queuePosition(record.id, 'training') : null);
  };

  resource(router, '/v1/trainings', {
    post: [
      ...jsonBody(settings.maxBodyBytes),
      async (req, res) => {
        const request = validate(TrainingRequest, req.body);
        const record = await submissions.submitTraining(
          tenantOf(req),
          request,
          webhookOf(request, req, deps),
        );
        logJobId(res, record.id);
        res.set('Location', `/v1/trainings/${record.id}`);
        // The job was accepted: a queue that goes away now may not deny that.
        res.status(202).json(await render(req, record).catch(() => trainingView(record, null)));
      },
    ],
    get: async (req, res) => {
      const page = await listJobs(jobs, tenantOf(req), 'training', req.query);
      const data = await Promise.all(page.records.map((record) => render(req, record)));
      res.json({ data, next_cursor: page.cursor } satisfies TrainingList);
    },
  });

  jobRoutes(router, deps, 'training', render);

  const measured = async (record: TrainingRecord): Promise<TrainingMetrics> => {
    const object = await store.get(trainingMetricsKey(record));
    // A folder that is away looks empty.
    if (!object) await store.ping();
    return object
      ? TrainingMetrics.parse(JSON.parse((await buffer(object.body)).toString()))
      : { steps: [], validation: [], checkpoints: [], samples: [], skipped: [] };
  };

  resource(router, '/v1/trainings/:id/metrics', {
    get: async (req, res) => {
      res.json(await measured(await loadJob(deps, 'training', req, res)));
    },
  });

  resource(router, '/v1/trainings/:id/checkpoints', {
    get: async (req, res) => {
      const record = await loadJob(deps, 'training', req, res);
      res.json(checkpointsView(record, await measured(record), originOf(req, config)));
    },
  });

  resource(router, '/v1/trainings/:id/samples/:step/:index', {
    get: async (req, res) => {
      const record = await loadJob(deps, 'training', req, res);
      await sendSample(store, req, res, record, await measured(record));
    },
  });
}
