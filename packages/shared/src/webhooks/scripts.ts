import { DUE_CHANNEL } from './keys.ts';

const NOW = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
`;

/**
 * Takes due deliveries by moving them a lease into the future: whoever dies with one leaves it to be due again.
 * KEYS: due. ARGV: how many at most, lease in ms. Returns the end of the leases, the ms until the next one is due
 * (-1 for none), then the members.
 */
export const CLAIM_SCRIPT = `${NOW}
local lease = now + ARGV[2]
local members = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, member in ipairs(members) do redis.call('ZADD', KEYS[1], lease, member) end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local wait = first[2] and math.max(0, first[2] - now) or -1
return {string.format('%.0f', lease), string.format('%.0f', wait), unpack(members)}
`;

/**
 * Writes what came of a claim. KEYS: delivery, its attempts, due. ARGV: member, lease, attempt as JSON or '', status,
 * ms until it is due again, attempts kept, seconds that a delivery is kept, failures to add.
 *
 * One that took over may have settled it meanwhile: then the attempt is noted, and only a success still counts.
 */
export const SETTLE_SCRIPT = `${NOW}
local delivery, attempts, due = KEYS[1], KEYS[2], KEYS[3]
local member, lease, attempt, status = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', delivery) == 0 then
  redis.call('ZREM', due, member)
  return 0
end
if attempt ~= '' then
  redis.call('RPUSH', attempts, attempt)
  redis.call('LTRIM', attempts, -ARGV[6], -1)
end
local held = tonumber(redis.call('ZSCORE', due, member) or -1) == tonumber(lease)
if held or status == 'delivered' then
  redis.call('HSET', delivery, 'status', status)
  redis.call('HINCRBY', delivery, 'failures', ARGV[8])
  if attempt ~= '' then redis.call('HDEL', delivery, 'manual') end
  if status == 'pending' then
    redis.call('ZADD', due, now + ARGV[5], member)
  else
    redis.call('ZREM', due, member)
  end
end
redis.call('EXPIRE', delivery, ARGV[7])
redis.call('EXPIRE', attempts, ARGV[7])
return held and 1 or 0
`;

/** Makes a delivery due now, with all its tries before it. KEYS: delivery, due. ARGV: member. Returns 0 for none. */
export const REDELIVER_SCRIPT = `${NOW}
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'pending', 'failures', 0, 'manual', 1, 'since', now)
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('PUBLISH', '${DUE_CHANNEL}', '')
return 1
`;
