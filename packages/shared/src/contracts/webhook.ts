import { z } from 'zod';

/** What a webhook can tell of: the first start of a job, and each of its ends. */
export const WEBHOOK_EVENTS = ['started', 'succeeded', 'failed', 'canceled'] as const;
export const WebhookEvent = z.enum(WEBHOOK_EVENTS);
export type WebhookEvent = z.infer<typeof WebhookEvent>;

const events = z
  .array(WebhookEvent)
  .min(1)
  .max(WEBHOOK_EVENTS.length)
  .meta({ description: 'The ends of the job when absent' });

/** Part of a request that submits a job: who is told what becomes of it. */
export const WebhookRequest = z
  .strictObject({
    url: z.string().min(1).max(2048).meta({
      description: 'Absolute https URL on the public internet that answers POST with a 2xx status',
      example: 'https://example.com/hooks/atelier',
    }),
    events: events.default(['succeeded', 'failed', 'canceled']),
  })
  .meta({ id: 'WebhookRequest' });
export type WebhookRequest = z.infer<typeof WebhookRequest>;

/** The webhook of a job as clients see it. */
export const WebhookView = z
  .strictObject({
    url: z.string().meta({ description: 'Without its query, which may hold a secret' }),
    events,
  })
  .meta({ id: 'Webhook' });
export type WebhookView = z.infer<typeof WebhookView>;

export const DELIVERY_STATUSES = ['pending', 'delivered', 'failed'] as const;
export const DeliveryStatus = z.enum(DELIVERY_STATUSES);
export type DeliveryStatus = z.infer<typeof DeliveryStatus>;

/** One try to send a delivery. */
export const DeliveryAttempt = z
  .strictObject({
    started_at: z.iso.datetime(),
    status: z.int().nullable().meta({ description: 'HTTP status of the answer; null without one' }),
    duration_ms: z.number(),
    error: z.string().nullable().meta({ description: 'Why it did not count; null when it did' }),
  })
  .meta({ id: 'DeliveryAttempt' });
export type DeliveryAttempt = z.infer<typeof DeliveryAttempt>;

export const DeliveryView = z
  .strictObject({
    id: z.string().meta({ description: 'Sent as webhook-id, the same in every attempt' }),
    type: z.string().meta({ example: 'generation.succeeded' }),
    url: WebhookView.shape.url,
    status: DeliveryStatus,
    created_at: z.iso.datetime(),
    next_attempt_at: z.iso.datetime().nullable().meta({
      description: 'Earliest time of the next attempt; null when none will come',
    }),
    attempts: z.array(DeliveryAttempt).meta({ description: 'Oldest first; the latest 50 of them' }),
  })
  .meta({ id: 'Delivery' });
export type DeliveryView = z.infer<typeof DeliveryView>;

export const DeliveryList = z
  .strictObject({ data: z.array(DeliveryView).meta({ description: 'Oldest first' }) })
  .meta({ id: 'DeliveryList' });
export type DeliveryList = z.infer<typeof DeliveryList>;

export const WebhookSecret = z
  .strictObject({
    secret: z.string().meta({
      description: 'Key of the signatures of all webhooks of this tenant, for a library of Standard Webhooks',
      example: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
    }),
  })
  .meta({ id: 'WebhookSecret' });
export type WebhookSecret = z.infer<typeof WebhookSecret>;
