import { type JobKind, type JobQueues, JOB_KINDS, type WebhookDeliveries } from '@atelier/shared';
import type { RequestHandler } from 'express';
import { Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';

/** The metrics of the API, on a registry of their own so that two APIs fit in one process. */
export function createApiMetrics(
  queues: Pick<JobQueues, 'queueCounts'>,
  webhooks: Pick<WebhookDeliveries, 'pending'>,
) {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const requests = new Histogram({
    name: 'atelier_http_request_duration_seconds',
    help: 'Time to answer by route, waits and event streams included',
    labelNames: ['method', 'route', 'status'],
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 60],
    registers: [registry],
  });
  const depth = new Gauge({
    name: 'atelier_queue_jobs',
    help: 'Jobs in the queue by state, read when scraped; absent while Redis is away',
    labelNames: ['queue', 'state'],
    registers: [],
    async collect() {
      this.reset();
      await Promise.all(JOB_KINDS.map((kind) => collectQueue(this, queues, kind)));
    },
  });
  registry.registerMetric(depth);
  const deliveries = new Gauge({
    name: 'atelier_webhooks_pending',
    help: 'Webhook deliveries that are not over, read when scraped; absent while Redis is away',
    registers: [],
    async collect() {
      this.reset();
      const count = await webhooks.pending().catch(() => null);
      if (count === null) this.remove();
      else this.set(count);
    },
  });
  registry.registerMetric(deliveries);

  /** Measures every request; the label is the route's pattern, so that ids do not make the series unbounded. */
  const measure: RequestHandler = (req, res, next) => {
    const end = requests.startTimer();
    res.once('close', () => {
      const route = (req.route as { path?: string } | undefined)?.path ?? 'none';
      end({ method: req.method, route, status: String(res.statusCode) });
    });
    next();
  };
  return { registry, measure };
}

async function collectQueue(
  gauge: Gauge<'queue' | 'state'>,
  queues: Pick<JobQueues, 'queueCounts'>,
  queue: JobKind,
): Promise<void> {
  // A scrape must not fail with Redis: what the process itself counts is worth the more then.
  const counts = await queues.queueCounts(queue).catch(() => null);
  if (!counts) return;
  for (const state of ['waiting', 'delayed', 'active', 'failed'] as const)
    gauge.set({ queue, state }, counts[state]);
}
