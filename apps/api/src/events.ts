import { once } from 'node:events';
import { type JobRecord, type JobRef, type ProgressEvent, isTerminal } from '@atelier/shared';
import type { Request, Response } from 'express';
import type { ApiDeps } from './deps.ts';

/** Proxies close what is silent for a minute; also how long a change can go unseen that happened while Redis was away. */
const HEARTBEAT_MS = 10_000;
/** What a browser waits before it connects again. */
const RECONNECT_MS = 2_000;

type Send = (event: 'status' | 'progress', id: string, data: unknown) => Promise<void>;

/**
 * Names a state of a job. A client that comes back with it as Last-Event-ID is told only what is new.
 *
 * @example '1-running-7' // first attempt, seven steps done
 */
export function eventId({ attempts, status, progress }: JobRecord): string {
  return `${attempts}-${status}-${progress.step}`;
}

/**
 * Streams a job as server-sent events until it ends, the client leaves or the API shuts down.
 *
 * `status` carries the whole job, `progress` its progress. Each event is the state at the time it is sent, read from
 * the record: Redis messages only say when to look. So nothing is out of order, a lost message costs at most one
 * heartbeat, and a client that reads slowly gets fewer events instead of old ones.
 *
 * @param first the record as just read, so that an unknown job or a Redis that is away is answered before
 * @param render what a `status` event carries
 */
export async function streamEvents<R extends JobRecord>(
  { jobs, shutdown }: Pick<ApiDeps, 'jobs' | 'shutdown'>,
  req: Request,
  res: Response,
  first: R,
  render: (record: R) => Promise<unknown>,
): Promise<void> {
  const lastEventId = req.get('last-event-id');
  if (isTerminal(first.status) && lastEventId === eventId(first)) {
    // There is nothing to come; EventSource stops reconnecting at this status only.
    res.status(204).end();
    return;
  }
  res.status(200).set({
    'Content-Type': 'text/event-stream; charset=utf-8',
    'Cache-Control': 'no-store',
    'X-Accel-Buffering': 'no',
  });
  if (req.method === 'HEAD') {
    res.end();
    return;
  }
  const gone = new AbortController();
  res.once('close', () => gone.abort());
  const stop = AbortSignal.any([gone.signal, shutdown]);
  const write = async (text: string) => {
    if (!res.write(text)) await once(res, 'drain', { signal: stop });
  };
  const send: Send = (event, id, data) =>
    write(`id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`);

  const bell = new Bell();
  const ref: JobRef = { tenant: first.tenant, id: first.id };
  const watching = jobs.subscribe(ref, bell.ring, bell.ring);
  // What changed before the subscription was in force made no sound.
  watching.then(bell.ring, () => {});
  try {
    await write(`retry: ${RECONNECT_MS}\n\n`);
    const changes = new Changes(send, render, lastEventId);
    let record: R | null = first;
    while (!stop.aborted) {
      if (record) await changes.send(record);
      if (record && isTerminal(record.status)) break;
      if (!(await bell.wait(HEARTBEAT_MS, stop))) await write(': still here\n\n');
      record = await readQuietly<R>(jobs, ref);
    }
  } catch (error) {
    // A client that leaves while a write waits for it is the usual end of a stream.
    if (!stop.aborted) throw error;
  } finally {
    res.end();
    void watching.then((unwatch) => unwatch()).catch(() => {});
  }
}

/** Redis being away must not end the stream: null, and the next ring or heartbeat looks again. */
async function readQuietly<R extends JobRecord>(jobs: ApiDeps['jobs'], ref: JobRef): Promise<R | null> {
  try {
    // A job never changes its kind.
    return (await jobs.get(ref)) as R | null;
  } catch {
    return null;
  }
}

/** Sends what differs from the state that was sent last. */
class Changes<R extends JobRecord> {
  readonly #send: Send;
  readonly #render: (record: R) => Promise<unknown>;
  #sentId: string | undefined;
  #sentStatus: string | undefined;

  constructor(send: Send, render: (record: R) => Promise<unknown>, lastEventId: string | undefined) {
    this.#send = send;
    this.#render = render;
    this.#sentId = lastEventId;
    this.#sentStatus = lastEventId?.split('-').slice(0, 2).join('-');
  }

  async send(record: R): Promise<void> {
    const id = eventId(record);
    if (id === this.#sentId) return;
    const status = `${record.attempts}-${record.status}`;
    if (status === this.#sentStatus) {
      const { id: jobId, status: jobStatus, progress } = record;
      await this.#send('progress', id, { id: jobId, status: jobStatus, progress } satisfies ProgressEvent);
    } else {
      await this.#send('status', id, await this.#render(record));
    }
    this.#sentId = id;
    this.#sentStatus = status;
  }
}

/** Wakes one waiter; a ring that comes while nobody waits is kept for the next wait. */
class Bell {
  #rung = Promise.withResolvers<void>();
  readonly ring = (): void => this.#rung.resolve();

  /** True when it rang within `ms`; false after that, or when `stop` aborted. */
  async wait(ms: number, stop: AbortSignal): Promise<boolean> {
    const over = Promise.withResolvers<false>();
    const silence = (): void => over.resolve(false);
    const timer = setTimeout(silence, ms);
    stop.addEventListener('abort', silence, { once: true });
    if (stop.aborted) silence();
    const rang = await Promise.race([this.#rung.promise.then(() => true), over.promise]);
    clearTimeout(timer);
    stop.removeEventListener('abort', silence);
    // Renewed before the caller looks, so that what changes while it looks rings again.
    if (rang) this.#rung = Promise.withResolvers<void>();
    return rang;
  }
}
