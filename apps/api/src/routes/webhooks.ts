import {
  AtelierError,
  type DeliveryList,
  JOB_KINDS,
  type WebhookSecret,
  WebhookDeliveries,
  deliveryRef,
  webhookSecret,
} from '@atelier/shared';
import type { IRouter } from 'express';
import { tenantOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { resource } from '../resource.ts';
import { deliveryView } from '../webhooks/payload.ts';
import { loadJob } from './jobs.ts';

/** What was sent to the webhook of a job, and how to check that it came from here. */
export function webhookRoutes(router: IRouter, deps: ApiDeps): void {
  const { redis, settings } = deps;
  const deliveries = new WebhookDeliveries(redis);

  for (const kind of JOB_KINDS) {
    const path = `/v1/${kind}s/:id/deliveries`;
    resource(router, path, {
      get: async (req, res) => {
        const records = await deliveries.list(await loadJob(deps, kind, req, res));
        res.json({ data: records.map(deliveryView) } satisfies DeliveryList);
      },
    });
    resource(router, `${path}/:delivery/redeliver`, {
      post: async (req, res) => {
        const id = String(req.params['delivery']);
        const ref = deliveryRef(await loadJob(deps, kind, req, res), id);
        const delivery = ref && (await deliveries.redeliver(ref));
        if (!delivery)
          throw new AtelierError(
            'not_found',
            `The ${kind} has no delivery ${JSON.stringify(id.slice(0, 80))}`,
          );
        res.status(202).json(deliveryView(delivery));
      },
    });
  }

  resource(router, '/v1/webhooks/secret', {
    get: async (req, res) => {
      const secret = await webhookSecret(redis, settings.webhooks.secret, tenantOf(req));
      res.set('Cache-Control', 'no-store').json({ secret } satisfies WebhookSecret);
    },
  });
}
