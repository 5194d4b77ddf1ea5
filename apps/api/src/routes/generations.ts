import { AtelierError, GenerationRequest, type GenerationList, type GenerationRecord } from '@atelier/shared';
import type { IRouter, Request, Response } from 'express';
import { tenantOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { streamEvents } from '../events.ts';
import { asGeneration, readGeneration } from '../generation-record.ts';
import { sendImage } from '../images/send-image.ts';
import { jsonBody } from '../json-body.ts';
import { listGenerations } from '../list.ts';
import { logJobId } from '../logging.ts';
import { originOf } from '../origin.ts';
import { preferredWait } from '../prefer.ts';
import { resource } from '../resource.ts';
import type { Submissions } from '../submission.ts';
import { validate } from '../validation/validate.ts';
import { jobView } from '../views.ts';

export function generationRoutes(router: IRouter, deps: ApiDeps, submissions: Submissions): void {
  const { config, jobs, queues, settings, shutdown, store } = deps;

  const render = async (req: Request, record: GenerationRecord) => {
    const position = record.status === 'queued' ? await queues.queuePosition(record.id) : null;
    return jobView(record, position, originOf(req, config));
  };
  const load = (req: Request, res: Response) => {
    const id = String(req.params['id']);
    logJobId(res, id);
    return readGeneration(jobs, { tenant: tenantOf(), id });
  };

  resource(router, '/v1/generations', {
    post: [
      ...jsonBody(settings.maxBodyBytes),
      async (req, res) => {
        const request = validate(GenerationRequest, req.body);
        const accepted = await submissions.submit(tenantOf(), request);
        logJobId(res, accepted.id);
        const waitS = preferredWait(req.get('prefer'));
        const record = waitS > 0 ? await ended(accepted, waitS, res) : accepted;
        if (waitS > 0) res.set('Preference-Applied', `wait=${waitS}`);
        res.set('Location', `/v1/generations/${record.id}`);
        res.status(record.finished_at === null ? 202 : 200).json(await renderAccepted(req, record));
      },
    ],
    get: async (req, res) => {
      const page = await listGenerations(jobs, tenantOf(), req.query);
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

  resource(router, '/v1/generations/:id', {
    get: async (req, res) => {
      res.json(await render(req, await load(req, res)));
    },
  });

  resource(router, '/v1/generations/:id/cancel', {
    post: async (req, res) => {
      const { tenant, id } = await load(req, res);
      const record = asGeneration((await jobs.requestCancel({ tenant, id })).record, id);
      if (record.status === 'succeeded' || record.status === 'failed') {
        throw new AtelierError(
          'conflict',
          `Generation ${id} has ${record.status}; only queued and running ones can be canceled`,
        );
      }
      // The queue entry is of no use any more; a worker that takes it all the same reads the record first.
      if (record.status === 'canceled') await queues.remove({ tenant, id }).catch(() => false);
      res.status(record.status === 'canceled' ? 200 : 202).json(await render(req, record));
    },
  });

  resource(router, '/v1/generations/:id/events', {
    get: async (req, res) => {
      const record = await load(req, res);
      await streamEvents(deps, req, res, record, (current) => render(req, current));
    },
  });

  resource(router, '/v1/generations/:id/images/:index', {
    get: async (req, res) => {
      await sendImage(store, req, res, await load(req, res), String(req.params['index']));
    },
  });
}
