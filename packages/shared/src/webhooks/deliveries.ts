import type { Redis } from 'ioredis';
import {
  DeliveryAttempt,
  type DeliveryStatus,
  WEBHOOK_EVENTS,
  type WebhookEvent,
} from '../contracts/webhook.ts';
import { ChannelWatcher } from '../jobs/channel-watcher.ts';
import { decodeRecord, fromPairs } from '../jobs/codec.ts';
import { recordKey } from '../jobs/keys.ts';
import type { JobRecord, JobRef } from '../jobs/record.ts';
import { queueCall } from '../redis.ts';
import { DUE_CHANNEL, DUE_KEY } from './keys.ts';
import { CLAIM_SCRIPT, REDELIVER_SCRIPT, SETTLE_SCRIPT } from './scripts.ts';

const KEPT_ATTEMPTS = 50;
/** After the last change; a delivery that is not over changes more often. */
const KEPT_S = 30 * 24 * 3600;

/** Names one delivery: each event of a job has at most one. */
export interface DeliveryRef extends JobRef {
  event: WebhookEvent;
}

/** The right to send a delivery until `lease`. */
export interface DeliveryClaim extends DeliveryRef {
  lease: string;
}

export interface DeliveryRecord extends DeliveryRef {
  status: DeliveryStatus;
  /** ISO 8601, UTC: when the event happened. */
  created_at: string;
  /** The job as it was then. */
  job: JobRecord;
  /** Attempts of this round that failed; a round begins with the event, and with each redelivery. */
  failures: number;
  /** Unix time in ms of the round's begin. */
  since: number;
  /** Asked for by a person, who wants to see it tried. */
  manual: boolean;
  /** Unix time in ms; null when the delivery is over. */
  due: number | null;
  attempts: DeliveryAttempt[];
}

/** What came of a claim: over, or `pending` and due again after `dueInMs`. */
export interface Settlement {
  status: DeliveryStatus;
  dueInMs?: number;
  /** Absent when nothing was sent. */
  attempt?: DeliveryAttempt;
}

const eventKey = (ref: DeliveryRef): string => `${recordKey(ref)}:webhook:${ref.event}`;
const attemptsKey = (ref: DeliveryRef): string => `${eventKey(ref)}:attempts`;
const memberOf = ({ tenant, id, event }: DeliveryRef): string => `${tenant}/${id}/${event}`;

/** The id of a delivery, which is `webhook-id` too: it says itself what it must be unique for. */
export const deliveryId = ({ id, event }: Pick<DeliveryRef, 'id' | 'event'>): string => `${id}_${event}`;

/** The inverse of {@link deliveryId} for a job; null for anything else. */
export function deliveryRef(job: JobRef, id: string): DeliveryRef | null {
  const event = WEBHOOK_EVENTS.find((name) => deliveryId({ id: job.id, event: name }) === id);
  return event ? { tenant: job.tenant, id: job.id, event } : null;
}

/**
 * What has to be sent to webhooks, and what came of it, in Redis.
 *
 * ```
 *            claim                 2xx
 *  due ------------> leased ------------------> delivered
 *   ^                |  |  410, refused, too often
 *   |  later again   |  +---------------------> failed
 *   +----------------+            redeliver leads from both back to due
 * ```
 *
 * The script that changes a job writes the delivery (`outbox.ts`). A sorted set by due time is the only queue: a claim
 * moves its member into the future, so what a process held that died is due again when the lease ends. That makes
 * it at least once; there is no second list that could disagree.
 * Every method rejects with AtelierError `queue_unavailable` when Redis cannot be reached.
 */
export class WebhookDeliveries {
  readonly #redis: Redis;
  readonly #watcher: ChannelWatcher;

  constructor(redis: Redis) {
    this.#redis = redis;
    this.#watcher = new ChannelWatcher(redis);
  }

  /** The deliveries of a job, oldest first. */
  async list(job: JobRef): Promise<DeliveryRecord[]> {
    const { tenant, id } = job;
    const found = await Promise.all(WEBHOOK_EVENTS.map((event) => this.get({ tenant, id, event })));
    // Those of one millisecond are in order of life already.
    return found
      .filter((delivery) => delivery !== null)
      .sort((a, b) => a.created_at.localeCompare(b.created_at));
  }

  /** null when the event did not happen, was not asked for, or is long over. */
  async get(ref: DeliveryRef): Promise<DeliveryRecord | null> {
    const [fields, attempts, due] = await queueCall(() =>
      Promise.all([
        this.#redis.hgetall(eventKey(ref)),
        this.#redis.lrange(attemptsKey(ref), 0, -1),
        this.#redis.zscore(DUE_KEY, memberOf(ref)),
      ]),
    );
    const job = fields['job'] ? decodeRecord(fromPairs(JSON.parse(fields['job']) as string[])) : null;
    if (!job) return null;
    return {
      tenant: ref.tenant,
      id: ref.id,
      event: ref.event,
      status: fields['status'] as DeliveryStatus,
      created_at: fields['created_at']!,
      job,
      failures: Number(fields['failures']),
      since: Number(fields['since']),
      manual: fields['manual'] === '1',
      due: due === null ? null : Number(due),
      attempts: attempts.map((text) => DeliveryAttempt.parse(JSON.parse(text))),
    };
  }

  /**
   * Takes up to `limit` due deliveries; each must be settled within `leaseMs`, or is due again.
   * @returns `nextMs`: until another one is due; null when there is none
   */
  async claim(limit: number, leaseMs: number): Promise<{ claims: DeliveryClaim[]; nextMs: number | null }> {
    const [lease, wait, ...members] = (await queueCall(() =>
      this.#redis.eval(CLAIM_SCRIPT, 1, DUE_KEY, limit, leaseMs),
    )) as [string, string, ...string[]];
    const claims = members.map((member) => {
      const [tenant, id, event] = member.split('/') as [string, string, WebhookEvent];
      return { tenant, id, event, lease };
    });
    return { claims, nextMs: Number(wait) < 0 ? null : Number(wait) };
  }

  /** False when another process has taken over; what was sent is in the log of attempts all the same. */
  async settle(claim: DeliveryClaim, { status, attempt, dueInMs = 0 }: Settlement): Promise<boolean> {
    const failures = attempt && attempt.error !== null ? 1 : 0;
    const keys = [eventKey(claim), attemptsKey(claim), DUE_KEY];
    const argv = [
      memberOf(claim),
      claim.lease,
      attempt ? JSON.stringify(attempt) : '',
      status,
      Math.round(dueInMs),
      KEPT_ATTEMPTS,
      KEPT_S,
      failures,
    ];
    return (await queueCall(() => this.#redis.eval(SETTLE_SCRIPT, keys.length, ...keys, ...argv))) === 1;
  }

  /** Sends a delivery once more from the first try on, whatever came of it; null when there is none. */
  async redeliver(ref: DeliveryRef): Promise<DeliveryRecord | null> {
    const done = await queueCall(() =>
      this.#redis.eval(REDELIVER_SCRIPT, 2, eventKey(ref), DUE_KEY, memberOf(ref)),
    );
    return done === 1 ? this.get(ref) : null;
  }

  /** How many are not over. */
  pending(): Promise<number> {
    return queueCall(() => this.#redis.zcard(DUE_KEY));
  }

  /** Calls back when something became due at once, or may have while Redis was away. */
  onDue(listener: () => void): Promise<() => Promise<void>> {
    return queueCall(() => this.#watcher.watch(DUE_CHANNEL, listener, listener));
  }

  /** Ends the subscription; the Redis client belongs to the caller. */
  close(): void {
    this.#watcher.close();
  }
}
