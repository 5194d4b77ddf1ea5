/**
 * The life of a job, and the only place that changes a record's status.
 *
 * ```
 *            start                 publish
 *  queued ----------> running ----------------> succeeded
 *    ^  |    retry      |  |        fail
 *    |  |   giveBack    |  +------------------> failed
 *    +--|--------------+   |       cancel
 *       |    requeue       +------------------> canceled
 *       |  cancelQueued (or start, retry, giveBack, requeue after a cancel request)
 *       +-------------------------------------> canceled
 * ```
 *
 * ### Who may write
 * `start` stores the token of the attempt; every later transition of that attempt names it and is refused when
 * another attempt has taken over. So a worker that was frozen past its lock and wakes up can publish nothing, and
 * of any number of attempts at most one publishes, once: `publish` ends the job, and nothing leaves an end.
 *
 * ### Taking over
 * `start` is allowed on a running job too: the queue hands out a job again only when the lock of the attempt
 * before has run out.
 *
 * ### Cancel
 * A queued job ends at once. A running one gets a durable mark, and whatever would put it back in the queue, or
 * start it again, ends it as canceled instead. A result that is published before the worker obeys stands.
 *
 * ### The queue gives up
 * `abandon` ends a job, whatever its attempt, when BullMQ will not run it any more.
 */
import type { JobStatus } from '../contracts/job.ts';
import { NOTIFY_LUA } from '../webhooks/outbox.ts';

export interface Transition {
  readonly from: readonly JobStatus[];
  readonly to: JobStatus;
  /** Only the attempt that holds the record may do this. */
  readonly fenced: boolean;
  /** Ends as canceled instead when a cancel request is waiting. */
  readonly yieldsToCancel: boolean;
  /** Added to the number of attempts. */
  readonly attempts: -1 | 0 | 1;
}

export const TRANSITIONS = Object.freeze({
  start: { from: ['queued', 'running'], to: 'running', fenced: false, yieldsToCancel: true, attempts: 1 },
  progress: { from: ['running'], to: 'running', fenced: true, yieldsToCancel: false, attempts: 0 },
  publish: { from: ['running'], to: 'succeeded', fenced: true, yieldsToCancel: false, attempts: 0 },
  fail: { from: ['running'], to: 'failed', fenced: true, yieldsToCancel: false, attempts: 0 },
  abandon: { from: ['queued', 'running'], to: 'failed', fenced: false, yieldsToCancel: true, attempts: 0 },
  retry: { from: ['running'], to: 'queued', fenced: true, yieldsToCancel: true, attempts: 0 },
  giveBack: { from: ['running'], to: 'queued', fenced: true, yieldsToCancel: true, attempts: -1 },
  requeue: { from: ['running'], to: 'queued', fenced: true, yieldsToCancel: true, attempts: 0 },
  cancel: { from: ['running'], to: 'canceled', fenced: true, yieldsToCancel: false, attempts: 0 },
  cancelQueued: { from: ['queued'], to: 'canceled', fenced: false, yieldsToCancel: false, attempts: 0 },
  markCancel: { from: ['running'], to: 'running', fenced: false, yieldsToCancel: false, attempts: 0 },
} as const satisfies Record<string, Transition>);

export type TransitionName = keyof typeof TRANSITIONS;

/** What the script is told beside the keys; one JSON argument, because it has lists and maps in it. */
export interface TransitionArguments extends Transition {
  /** Empty when the transition is not fenced. */
  token: string;
  now: string;
  event: 'status' | 'progress';
  id: string;
  /** Encoded fields to write, and names of fields to remove, unless the job ends as canceled. */
  set: Record<string, string>;
  remove: readonly string[];
}

/**
 * KEYS: the record, the set of open jobs, the due webhooks. ARGV: TransitionArguments as JSON, event channel, member in the set.
 * Returns 'missing', or 'refused' or 'done' with the record as it is then.
 */
export const TRANSITION_SCRIPT = `${NOTIFY_LUA}
local record, open = KEYS[1], KEYS[2]
local t = cjson.decode(ARGV[1])
local state = redis.call('HMGET', record, 'status', 'attempt', 'cancel_requested_at')
local status, attempt, cancel = state[1], state[2], state[3]
if not status then return {'missing'} end

local allowed = false
for _, from in ipairs(t.from) do allowed = allowed or from == status end
if not allowed or (t.fenced and attempt ~= t.token) then
  return {'refused', redis.call('HGETALL', record)}
end

local to = t.to
if t.yieldsToCancel and cancel then
  to = 'canceled'
else
  for field, value in pairs(t.set) do redis.call('HSET', record, field, value) end
  for _, field in ipairs(t.remove) do redis.call('HDEL', record, field) end
  if t.attempts ~= 0 then redis.call('HINCRBY', record, 'attempts', t.attempts) end
end
redis.call('HSET', record, 'status', to)
if to == 'succeeded' then
  local steps = string.format('%d', cjson.decode(redis.call('HGET', record, 'progress')).steps)
  redis.call('HSET', record, 'progress',
    '{"step":' .. steps .. ',"steps":' .. steps .. ',"fraction":1,"eta_s":0}')
end
if to == 'succeeded' or to == 'failed' or to == 'canceled' then
  redis.call('HSET', record, 'finished_at', t.now)
  redis.call('HDEL', record, 'attempt')
  redis.call('ZREM', open, ARGV[3])
end
redis.call('PUBLISH', ARGV[2], '{"id":"' .. t.id .. '","type":"' .. t.event .. '","status":"' .. to ..
  '","progress":' .. redis.call('HGET', record, 'progress') .. '}')
notify(record, KEYS[3], ARGV[3], to, t.now)
return {'done', redis.call('HGETALL', record)}
`;

/** KEYS: record, index, open. ARGV: id, member of open, its score, then the fields. Returns 0 when the id is taken. */
export const CREATE_SCRIPT = `
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[2])
return 1
`;
