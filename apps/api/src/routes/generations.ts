import { GenerationRequest, type GenerationList, type GenerationRecord } from '@atelier/shared';
import type { IRouter, Request, Response } from 'express';
import { tenantOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { sendImage } from '../images/send-image.ts';
import { jsonBody } from '../json-body.ts';
import { listJobs } from '../list.ts';
import { logJobId } from '../logging.ts';
import { originOf } from '../origin.ts';
import { preferredWait } from '../prefer.ts';
import { resource } from '../resource.ts';
import type { Submissions } from '../submission.ts';
import { validate } from '../validation/validate.ts';
import { jobView } from '../views.ts';
import { webhookOf } from '../webhooks/request.ts';
import { jobRoutes, loadJob } from './jobs.ts';

export function generationRoutes(router: IRouter, deps: ApiDeps, submissions: Submissions): void {
  const { config, jobs, queues, settings, shutdown, store } = deps;

  const render = async (req: Request, record: GenerationRecord) => {
    const position = record.status === 'queued' ? await queues.queuePosition(record.id) : null;
    return jobView(record, position, originOf(req, config));
  };

  resource(router, '/v1/generations', {
    post: [
      ...jsonBody(settings.maxBodyBytes),
      async (req, res) => {
        const request = validate(GenerationRequest, req.body);
        const accepted = await submissions.submit(tenantOf(req), request, webhookOf(request, req, deps));
        logJobId(res, accepted.id);
        const waitS = preferredWait(req.get('prefer'));
        const record = waitS > 0 ? await ended(accepted, waitS, res) : accepted;
        if (waitS > 0) res.set('Preference-Applied', `wait=${waitS}`);
        res.set('Location', `/v1/generations/${record.id}`);
        res.status(record.finished_at === null ? 202 : 200).json(await renderAccepted(req, record));
      },
    ],
    get: async (req, res) => {
      const page = await listJobs(jobs, tenantOf(req), 'generation', req.query);
      const data = await Promise.all(page.records.map((record) => render(req, record)));
      res.json({ data, next_cursor: page.cursor } satisfies GenerationList);
    },
  });

  /** The record at the end of the wait. The job was accepted: nothing that goes wrong from here on may deny that. */
  async function ended(accepted: GenerationRecord, waitS: number, res: Response): Promise<GenerationRecord> {
    const left = new AbortController();
    res.once('close', () => left.abort());
    const stop = AbortSignal.any([left.signal, shutdown]);
    const record = await jobs.wait(accepted, waitS * 1_000, stop).catch(() => null);
    return record?.kind === 'generation' ? record : accepted;
  }

  async function renderAccepted(req: Request, record: GenerationRecord) {
    return render(req, record).catch(() => jobView(record, null, originOf(req, config)));
  }

  jobRoutes(router, deps, 'generation', render);

  resource(router, '/v1/generations/:id/images/:index', {
    get: async (req, res) => {
      await sendImage(
        store,
        req,
        res,
        await loadJob(deps, 'generation', req, res),
        String(req.params['index']),
      );
    },
  });
}
