import { DUE_CHANNEL } from './keys.ts';

/**
 * Lua for the script that changes a job: `notify` writes the delivery of the change in the same atomic step, so there
 * is no moment at which a job has ended and its webhook could be lost.
 *
 * The delivery keeps the record as it is then: what is sent does not depend on when. One event makes one delivery
 * however often it happens, as `started` does for a job that was given back. The key of the delivery is derived from
 * the record's, which is in the same cluster slot as every key of the product.
 */
export const NOTIFY_LUA = `
local EVENTS = {running = 'started', succeeded = 'succeeded', failed = 'failed', canceled = 'canceled'}
local function notify(record, due, member, status, now)
  local event, hook = EVENTS[status], redis.call('HGET', record, 'webhook')
  if not event or not hook then return end
  -- A webhook that cannot be read must not keep its job from ending.
  local readable, decoded = pcall(cjson.decode, hook)
  if not readable then return end
  local wanted = false
  for _, name in ipairs(decoded.events) do wanted = wanted or name == event end
  local delivery = record .. ':webhook:' .. event
  if not wanted or redis.call('EXISTS', delivery) == 1 then return end
  redis.call('HSET', delivery, 'status', 'pending', 'created_at', now, 'failures', 0,
    'job', cjson.encode(redis.call('HGETALL', record)))
  local time = redis.call('TIME')
  local ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', delivery, 'since', ms)
  redis.call('ZADD', due, ms, member .. '/' .. event)
  redis.call('PUBLISH', '${DUE_CHANNEL}', '')
end
`;
