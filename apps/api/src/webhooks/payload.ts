import { type Config, type DeliveryRecord, type DeliveryView, deliveryId } from '@atelier/shared';
import { jobView, trainingView, webhookView } from '../views.ts';

/** The kind of job and what happened to it. @example 'generation.succeeded' */
export const eventType = ({ job, event }: DeliveryRecord): string => `${job.kind}.${event}`;

/**
 * The body of a webhook as JSON: the same bytes in every attempt.
 *
 * @returns `{type, timestamp, data}`; `data` is the job as GET answered when the event happened, but for its position
 *   in the queue
 */
export function webhookBody(
  delivery: DeliveryRecord,
  { ATELIER_PUBLIC_URL }: Pick<Config, 'ATELIER_PUBLIC_URL'>,
): string {
  const { job, created_at: timestamp } = delivery;
  const origin = (ATELIER_PUBLIC_URL ?? job.webhook?.origin ?? '').replace(/\/+$/, '');
  const data = job.kind === 'generation' ? jobView(job, null, origin) : trainingView(job, null);
  return JSON.stringify({ type: eventType(delivery), timestamp, data });
}

/** A delivery as clients see it. */
export function deliveryView(delivery: DeliveryRecord): DeliveryView {
  const { status, created_at, due, attempts, job } = delivery;
  return {
    id: deliveryId(delivery),
    type: eventType(delivery),
    url: webhookView(job)?.url ?? '',
    status,
    created_at,
    next_attempt_at: status === 'pending' && due !== null ? new Date(due).toISOString() : null,
    attempts,
  };
}
