import type { Redis } from 'ioredis';
import type { JobError, JobKind, Progress, StoredImage, Timings } from '../contracts/job.ts';
import { AtelierError } from '../errors.ts';
import { newJobId } from '../ids.ts';
import { queueCall } from '../redis.ts';
import { DUE_KEY } from '../webhooks/keys.ts';
import { ChannelWatcher } from './channel-watcher.ts';
import { decodeRecord, encodeRecord, fromPairs } from './codec.ts';
import { CANCEL_CHANNEL, eventChannel, formatRef, indexKey, openKey, parseRef, recordKey } from './keys.ts';
import { DEFAULT_TENANT, isTerminal } from './record.ts';
import type { Attempt, JobEvent, JobRecord, JobRef, NewJob, Outcome } from './record.ts';
import { CREATE_SCRIPT, TRANSITION_SCRIPT, TRANSITIONS } from './transitions.ts';
import type { TransitionArguments, TransitionName } from './transitions.ts';

interface Change {
  token?: string;
  set?: Partial<JobRecord>;
  remove?: readonly (keyof JobRecord)[];
}

/** Records read at once when the store goes through many of them. */
const BATCH = 200;

/**
 * The job records, in Redis. What a job may become is in `transitions.ts`; every change is one script, so that two
 * processes cannot both win. Records stay until they are deleted.
 * Every method rejects with AtelierError `queue_unavailable` when Redis cannot be reached.
 */
export class JobStore {
  readonly #redis: Redis;
  readonly #watcher: ChannelWatcher;

  constructor(redis: Redis) {
    this.#redis = redis;
    this.#watcher = new ChannelWatcher(redis);
  }

  /**
   * Writes a new record; the caller enqueues it next.
   * @throws AtelierError `conflict` when the id is taken
   */
  async create(job: NewJob): Promise<JobRecord> {
    const { kind, tenant = DEFAULT_TENANT, id = newJobId(kind), input, metadata = {}, webhook = null } = job;
    const now = new Date();
    const steps = job.kind === 'generation' ? job.input.steps * job.input.count : 0;
    const record = {
      id,
      tenant,
      kind,
      status: 'queued',
      input,
      progress: { step: 0, steps, fraction: 0, eta_s: null },
      output: null,
      error: null,
      timings: null,
      attempts: 0,
      attempt: null,
      worker: null,
      metadata,
      webhook,
      created_at: now.toISOString(),
      started_at: null,
      finished_at: null,
      cancel_requested_at: null,
    } as JobRecord;
    const keys = [recordKey(record), indexKey(tenant, kind), openKey(kind)];
    const fields = Object.entries(encodeRecord(record)).flat();
    const created = await queueCall(() =>
      this.#redis.eval(CREATE_SCRIPT, keys.length, ...keys, id, formatRef(record), now.getTime(), ...fields),
    );
    if (created !== 1) throw new AtelierError('conflict', `A job with the id ${id} exists already`);
    return record;
  }

  /** null when the tenant has no such job. */
  async get(ref: JobRef): Promise<JobRecord | null> {
    return decodeRecord(await queueCall(() => this.#redis.hgetall(recordKey(ref))));
  }

  /** A page of a tenant's jobs, newest first; `cursor` is that of the page before, `limit` 1 to 200 (50). */
  async list(
    tenant: string,
    kind: JobKind,
    options: { cursor?: string; limit?: number } = {},
  ): Promise<{ records: JobRecord[]; cursor: string | null }> {
    const { cursor, limit = 50 } = options;
    const below = cursor === undefined ? '+' : `(${cursor}`;
    const ids = await queueCall(() =>
      this.#redis.zrevrangebylex(indexKey(tenant, kind), below, '-', 'LIMIT', 0, limit + 1),
    );
    const page = ids.slice(0, limit);
    const records = await this.#getMany(page.map((id) => ({ tenant, id })));
    return { records, cursor: ids.length > limit ? page.at(-1)! : null };
  }

  /** Every job that has not ended, over all tenants, oldest first. */
  async *open(kind: JobKind): AsyncGenerator<JobRecord> {
    // A snapshot: jobs that end or arrive meanwhile would shift a page taken by rank.
    const members = await queueCall(() => this.#redis.zrange(openKey(kind), 0, '-1'));
    for (let i = 0; i < members.length; i += BATCH)
      yield* await this.#getMany(members.slice(i, i + BATCH).map(parseRef));
  }

  /** queued -> running. The record comes back `canceled` when a cancel request was waiting. */
  start(attempt: Attempt, worker: string): Promise<Outcome> {
    return this.#transition('start', attempt, {
      set: { attempt: attempt.token, worker, started_at: new Date().toISOString() },
    });
  }

  /** Writes how far the attempt is and tells the watchers; the caller limits how often. */
  progress(attempt: Attempt, progress: Progress): Promise<Outcome> {
    return this.#transition('progress', attempt, { token: attempt.token, set: { progress } });
  }

  /** running -> succeeded. Of all attempts of a job, one call at most is `done`. */
  publish(attempt: Attempt, images: StoredImage[], timings: Timings): Promise<Outcome> {
    return this.#transition('publish', attempt, {
      token: attempt.token,
      set: { output: { images }, timings },
    });
  }

  /** running -> succeeded for a training, whose result is a version of a LoRA: `name@version`. */
  publishLora(attempt: Attempt, lora: string): Promise<Outcome> {
    return this.#transition('publish', attempt, {
      token: attempt.token,
      set: { output: { images: [], lora } },
    });
  }

  /** running -> failed. */
  fail(attempt: Attempt, error: JobError): Promise<Outcome> {
    return this.#transition('fail', attempt, { token: attempt.token, set: { error } });
  }

  /** queued or running -> failed, whatever the attempt: the queue will not run the job any more. */
  abandon(ref: JobRef, error: JobError): Promise<Outcome> {
    return this.#transition('abandon', ref, { set: { error } });
  }

  /** Like {@link abandon}, for a job whose client was told that it was not accepted: no webhook tells of it. */
  disown(ref: JobRef, error: JobError): Promise<Outcome> {
    return this.#transition('abandon', ref, { set: { error }, remove: ['webhook'] });
  }

  /** running -> queued after an attempt that failed; the queue runs the job again. */
  retry(attempt: Attempt): Promise<Outcome> {
    return this.#backToQueue('retry', attempt);
  }

  /** running -> queued without spending an attempt, by a worker that shuts down. */
  giveBack(attempt: Attempt): Promise<Outcome> {
    return this.#backToQueue('giveBack', attempt);
  }

  /** running -> queued for an attempt that the queue knows nothing of any more. */
  requeue(attempt: Attempt): Promise<Outcome> {
    return this.#backToQueue('requeue', attempt);
  }

  /**
   * Asks a job to stop: a queued one is canceled at once, a running one marked and its worker told. `refused` with
   * the record when the job has ended.
   */
  async requestCancel(ref: JobRef): Promise<Outcome> {
    const queued = await this.#transition('cancelQueued', ref, {});
    if (queued.result !== 'refused' || queued.record.status !== 'running') return queued;
    const marked = await this.#transition('markCancel', ref, {
      set: { cancel_requested_at: new Date().toISOString() },
    });
    // It was given back between the two calls.
    if (marked.record?.status === 'queued') return this.requestCancel(ref);
    if (marked.result === 'done') await queueCall(() => this.#redis.publish(CANCEL_CHANNEL, formatRef(ref)));
    return marked;
  }

  /** running -> canceled, by the worker that obeyed. */
  cancel(attempt: Attempt): Promise<Outcome> {
    return this.#transition('cancel', attempt, { token: attempt.token });
  }

  /**
   * The record as soon as the job has ended, or as it is when `ms` are over or `signal` aborts; null when there is
   * no such job. Waiting changes nothing about the job.
   */
  async wait(ref: JobRef, ms: number, signal?: AbortSignal): Promise<JobRecord | null> {
    const first = await this.get(ref);
    if (!first || isTerminal(first.status) || ms <= 0 || signal?.aborted) return first;

    const { promise: over, resolve: finish } = Promise.withResolvers<void>();
    const timer = setTimeout(finish, ms);
    const stop = (): void => finish();
    signal?.addEventListener('abort', stop, { once: true });
    const reread = (): void =>
      void this.get(ref).then(
        (record) => (!record || isTerminal(record.status)) && finish(),
        // Redis is away again: its return or the timeout decides.
        () => {},
      );
    const watching = this.subscribe(ref, (event) => isTerminal(event.status) && finish(), reread);
    // The job may have ended before the subscription was in force.
    void watching.then(reread, stop);
    try {
      await over;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', stop);
      void watching.then((unwatch) => unwatch()).catch(() => {});
    }
    return this.get(ref);
  }

  /**
   * Calls back for each event of a job until the returned function is called. Events are lost while Redis is away;
   * `onReconnect` says that the record should be read.
   */
  subscribe(
    ref: JobRef,
    listener: (event: JobEvent) => void,
    onReconnect?: () => void,
  ): Promise<() => Promise<void>> {
    const onMessage = (message: string): void => listener(JSON.parse(message) as JobEvent);
    return queueCall(() => this.#watcher.watch(eventChannel(ref), onMessage, onReconnect));
  }

  /** Calls back for each cancel request of a running job in the installation; misses those during an outage. */
  onCancelRequest(listener: (ref: JobRef) => void): Promise<() => Promise<void>> {
    return queueCall(() => this.#watcher.watch(CANCEL_CHANNEL, (message) => listener(parseRef(message))));
  }

  /** Ends the subscriptions; the Redis client belongs to the caller. */
  close(): void {
    this.#watcher.close();
  }

  #backToQueue(name: 'retry' | 'giveBack' | 'requeue', attempt: Attempt): Promise<Outcome> {
    return this.#transition(name, attempt, {
      token: attempt.token,
      remove: ['attempt', 'worker', 'started_at'],
    });
  }

  async #transition(name: TransitionName, ref: JobRef, change: Change): Promise<Outcome> {
    const argument: TransitionArguments = {
      ...TRANSITIONS[name],
      id: ref.id,
      token: change.token ?? '',
      now: new Date().toISOString(),
      event: name === 'progress' ? 'progress' : 'status',
      set: encodeRecord(change.set ?? {}),
      remove: change.remove ?? [],
    };
    const kind: JobKind = ref.id.startsWith('trn_') ? 'training' : 'generation';
    const keys = [recordKey(ref), openKey(kind), DUE_KEY];
    const argv = [JSON.stringify(argument), eventChannel(ref), formatRef(ref)];
    const [result, pairs] = (await queueCall(() =>
      this.#redis.eval(TRANSITION_SCRIPT, keys.length, ...keys, ...argv),
    )) as [Outcome['result'], string[] | undefined];
    const record = pairs ? decodeRecord(fromPairs(pairs)) : null;
    if (result === 'missing' || !record) return { result: 'missing', record: null };
    return { result, record };
  }

  async #getMany(refs: readonly JobRef[]): Promise<JobRecord[]> {
    const records = await queueCall(() =>
      Promise.all(refs.map((ref) => this.#redis.hgetall(recordKey(ref)))),
    );
    return records.map(decodeRecord).filter((record) => record !== null);
  }
}
