import { setTimeout as sleep } from 'node:timers/promises';
import {
  Breaker,
  type BreakerOptions,
  type DeliveryClaim,
  type DeliveryRecord,
  type Endpoint,
  WebhookDeliveries,
  deliveryId,
  webhookSecret,
} from '@atelier/shared';
import { Webhook } from 'standardwebhooks';
import type { ApiDeps } from '../deps.ts';
import { AddressRefused, type Resolve } from './address.ts';
import { type Outcome, outcomeOf, outcomeOfError, pauseMs } from './outcome.ts';
import { webhookBody } from './payload.ts';
import { SEND_TIMEOUT_MS, send } from './send.ts';

const CONCURRENCY = 32;
/** Of one endpoint at once, so that one that is slow leaves room for others. */
const PER_ENDPOINT = 4;
/** A claim whose holder is silent for so long is due again; three times what an attempt takes. */
const LEASE_MS = 3 * SEND_TIMEOUT_MS;
/** A delivery that waits for its endpoint all the time is given up then, or after twice the time of its tries. */
const MIN_AGE_MS = 3 * 24 * 3_600_000;
/** How long an unheard call can go unnoticed. */
const POLL_MS = 15_000;
const OUTAGE_PAUSE_MS = 1_000;
const BUSY_PAUSE_MS = 250;

type Deps = Pick<ApiDeps, 'config' | 'log' | 'redis'> & { settings: Pick<ApiDeps['settings'], 'webhooks'> };

export interface DispatcherOptions {
  resolve?: Resolve;
  breaker?: BreakerOptions;
  leaseMs?: number;
  timeoutMs?: number;
}

/**
 * Sends the webhooks of the installation, at least once each; any number of dispatchers may run. It takes what is
 * due, sends it, and settles it. What it held when it died is due again at the end of the lease, so a receiver may see
 * a delivery twice, with one `webhook-id`.
 */
export class WebhookDispatcher {
  readonly #deps: Deps;
  readonly #options: DispatcherOptions;
  readonly #deliveries: WebhookDeliveries;
  readonly #breaker: Breaker;
  readonly #stop = new AbortController();
  readonly #inFlight = new Set<Promise<void>>();
  readonly #perEndpoint = new Map<string, number>();
  readonly #done: Promise<void>;
  readonly #maxAgeMs: number;
  #wake = Promise.withResolvers<void>();

  constructor(deps: Deps, options: DispatcherOptions = {}) {
    this.#deps = deps;
    this.#options = options;
    this.#deliveries = new WebhookDeliveries(deps.redis);
    this.#breaker = new Breaker(deps.redis, options.breaker);
    const triesS = deps.settings.webhooks.retryS.reduce((sum, pause) => sum + pause, 0);
    this.#maxAgeMs = Math.max(MIN_AGE_MS, 2_000 * triesS);
    this.#done = this.#run();
  }

  /** Takes nothing more and ends what is being sent; that is sent again by the next dispatcher. */
  async close(): Promise<void> {
    this.#stop.abort();
    this.#wake.resolve();
    await this.#done;
    this.#deliveries.close();
  }

  async #run(): Promise<void> {
    const { log, redis } = this.#deps;
    // A subscription waits for Redis for as long as it takes; the first look does not.
    void this.#deliveries
      .onDue(() => this.#wake.resolve())
      .then(
        () => this.#wake.resolve(),
        () => {},
      );
    while (!this.#stop.signal.aborted) {
      try {
        // Renewed before it looks, so that what becomes due while it looks wakes it again.
        this.#wake = Promise.withResolvers<void>();
        const free = CONCURRENCY - this.#inFlight.size;
        const leaseMs = this.#options.leaseMs ?? LEASE_MS;
        const { claims, nextMs } =
          free > 0 ? await this.#deliveries.claim(free, leaseMs) : { claims: [], nextMs: null };
        for (const claim of claims) this.#track(this.#handle(claim));
        await this.#pause(free > 0 ? Math.min(nextMs ?? POLL_MS, POLL_MS) : POLL_MS);
      } catch (err) {
        // A connection that is away is reported by readiness, and comes back by itself.
        const level = redis.status === 'ready' ? 'warn' : 'debug';
        if (!this.#stop.signal.aborted) log[level]({ err }, 'webhooks cannot be read; trying again');
        await sleep(OUTAGE_PAUSE_MS, undefined, { signal: this.#stop.signal }).catch(() => {});
      }
    }
    await Promise.all(this.#inFlight);
  }

  #track(work: Promise<void>): void {
    const tracked = work
      .catch((err: unknown) =>
        this.#deps.log.warn({ err }, 'a webhook could not be settled; it is sent again'),
      )
      .finally(() => {
        // A place that becomes free may be waited for.
        if (this.#inFlight.size >= CONCURRENCY) this.#wake.resolve();
        this.#inFlight.delete(tracked);
      });
    this.#inFlight.add(tracked);
  }

  async #pause(ms: number): Promise<void> {
    const timer = setTimeout(() => this.#wake.resolve(), ms);
    await this.#wake.promise;
    clearTimeout(timer);
  }

  async #handle(claim: DeliveryClaim): Promise<void> {
    const delivery = await this.#deliveries.get(claim);
    if (!delivery?.job.webhook || delivery.status !== 'pending') {
      await this.#deliveries.settle(claim, { status: delivery?.status ?? 'failed' });
      return;
    }
    const { url } = delivery.job.webhook;
    const endpoint = { tenant: claim.tenant, origin: new URL(url).origin };
    const name = `${endpoint.tenant} ${endpoint.origin}`;
    const busy = this.#perEndpoint.get(name) ?? 0;
    if (busy >= PER_ENDPOINT) return this.#later(claim, BUSY_PAUSE_MS);
    this.#perEndpoint.set(name, busy + 1);
    try {
      await this.#attempt(claim, delivery, url, endpoint);
    } finally {
      const left = this.#perEndpoint.get(name)! - 1;
      if (left > 0) this.#perEndpoint.set(name, left);
      else this.#perEndpoint.delete(name);
    }
  }

  async #attempt(
    claim: DeliveryClaim,
    delivery: DeliveryRecord,
    url: string,
    endpoint: Endpoint,
  ): Promise<void> {
    if (Date.now() - delivery.since > this.#maxAgeMs) {
      this.#givenUp(delivery, 'its endpoint was failing all the time');
      await this.#deliveries.settle(claim, { status: 'failed' });
      return;
    }
    const admission = await this.#breaker.admit(endpoint);
    // A person who asks for a delivery wants to see it tried.
    if ('waitMs' in admission && !delivery.manual) return this.#later(claim, admission.waitMs);
    const began = new Date();
    const clock = performance.now();
    const outcome = await this.#send(delivery, url, began);
    if (!outcome) return this.#later(claim, 0);
    const { status, error, retryAfterS, result, healthy } = outcome;
    const attempt = {
      started_at: began.toISOString(),
      status,
      duration_ms: Math.round(performance.now() - clock),
      error,
    };
    const probe = 'probe' in admission && admission.probe;
    if (healthy === true) await this.#breaker.succeeded(endpoint);
    if (healthy === false) await this.#breaker.failed(endpoint, probe);
    const { retryS } = this.#deps.settings.webhooks;
    const pause = result === 'retry' ? pauseMs(retryS, delivery.failures + 1, retryAfterS) : null;
    if (pause !== null) {
      await this.#deliveries.settle(claim, { status: 'pending', dueInMs: pause, attempt });
      this.#wake.resolve();
      return;
    }
    await this.#deliveries.settle(claim, { status: error === null ? 'delivered' : 'failed', attempt });
    if (error !== null) this.#givenUp(delivery, error);
  }

  #givenUp({ id, event }: DeliveryRecord, error: string): void {
    this.#deps.log.warn({ job_id: id, event, error }, 'a webhook was given up');
  }

  /** null when the dispatcher was closed meanwhile: nobody knows what the receiver did with it. */
  async #send(delivery: DeliveryRecord, url: string, at: Date): Promise<Outcome | null> {
    const { config, log, redis, settings } = this.#deps;
    const { resolve, timeoutMs } = this.#options;
    const body = webhookBody(delivery, config);
    const id = deliveryId(delivery);
    const secret = await webhookSecret(redis, settings.webhooks.secret, delivery.tenant);
    const headers = {
      'Content-Type': 'application/json',
      'User-Agent': 'atelier-webhooks/1',
      'webhook-id': id,
      'webhook-timestamp': String(Math.floor(at.getTime() / 1_000)),
      'webhook-signature': new Webhook(secret).sign(id, at, body),
    };
    try {
      const options = {
        allowance: settings.webhooks.allow,
        signal: this.#stop.signal,
        ...(resolve ? { resolve } : {}),
        ...(timeoutMs ? { timeoutMs } : {}),
      };
      return outcomeOf(await send(url, body, headers, options));
    } catch (error) {
      if (this.#stop.signal.aborted) return null;
      if (error instanceof AddressRefused)
        log.warn({ job_id: delivery.id, address: error.address }, `a webhook was refused: ${error.message}`);
      return outcomeOfError(error);
    }
  }

  async #later(claim: DeliveryClaim, waitMs: number): Promise<void> {
    // Spread, so that all that wait for one endpoint do not come back in one moment.
    await this.#deliveries.settle(claim, { status: 'pending', dueInMs: waitMs * (1 + Math.random() / 4) });
    this.#wake.resolve();
  }
}
