import type { Redis } from 'ioredis';
import { queueCall } from '../redis.ts';
import { breakerKey } from './keys.ts';

/** Where the webhooks of a tenant go: `https://host:port`. */
export interface Endpoint {
  tenant: string;
  origin: string;
}

export interface BreakerOptions {
  /** Failures in a row that open the breaker. */
  failures: number;
  /** How long it is open at first; doubles with each probe that fails. */
  cooldownMs: number;
  maxCooldownMs: number;
  /** How long a probe keeps others waiting; longer than it can take. */
  probeMs: number;
}

export const BREAKER: BreakerOptions = Object.freeze({
  failures: 5,
  cooldownMs: 30_000,
  maxCooldownMs: 3_600_000,
  probeMs: 20_000,
});

/** Go ahead, as the probe or as one of many; or come back later. */
export type Admission = { probe: boolean } | { waitMs: number };

/**
 * Keeps deliveries from an endpoint that fails.
 *
 * ### Closed
 * Failures in a row are counted; a success forgets them.
 * ### Open
 * After `failures` of them nobody is admitted until the cooldown is over.
 * ### Half-open
 * Then one is admitted as the probe, and others wait for what comes of it: success closes the breaker, a failure opens
 * it for twice as long. A probe that never reports is replaced after `probeMs`.
 *
 * The state is in Redis, so all processes of an installation agree, and forgotten after a day without a failure.
 */
export class Breaker {
  readonly #redis: Redis;
  readonly #options: BreakerOptions;

  constructor(redis: Redis, options: BreakerOptions = BREAKER) {
    this.#redis = redis;
    this.#options = options;
  }

  async admit({ tenant, origin }: Endpoint): Promise<Admission> {
    const { failures, probeMs } = this.#options;
    const key = breakerKey(tenant, origin);
    const answer = Number(await queueCall(() => this.#redis.eval(ADMIT_SCRIPT, 1, key, failures, probeMs)));
    return answer > 0 ? { waitMs: answer } : { probe: answer < 0 };
  }

  async succeeded({ tenant, origin }: Endpoint): Promise<void> {
    await queueCall(() => this.#redis.del(breakerKey(tenant, origin)));
  }

  /** @param probe whether the attempt was admitted as the probe */
  async failed({ tenant, origin }: Endpoint, probe: boolean): Promise<void> {
    const { failures, cooldownMs, maxCooldownMs } = this.#options;
    const argv = [failures, cooldownMs, maxCooldownMs, probe ? 1 : 0];
    await queueCall(() => this.#redis.eval(FAILED_SCRIPT, 1, breakerKey(tenant, origin), ...argv));
  }
}

const NOW = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', KEYS[1], 'failures', 'open_until')
local failures, open = tonumber(state[1] or 0), tonumber(state[2] or 0)
`;

/** ARGV: failures that open, ms of a probe. Returns ms to wait, 0 for go, -1 for go as the probe. */
const ADMIT_SCRIPT = `${NOW}
if failures < tonumber(ARGV[1]) then return 0 end
if open > now then return math.ceil(open - now) end
redis.call('HSET', KEYS[1], 'open_until', now + ARGV[2])
return -1
`;

/**
 * ARGV: failures that open, cooldown, its maximum, whether this was the probe. Those that were on their way when the
 * breaker opened say nothing new.
 */
const FAILED_SCRIPT = `${NOW}
if open > now and ARGV[4] == '0' then return end
failures = failures + 1
redis.call('HSET', KEYS[1], 'failures', failures)
local beyond = failures - ARGV[1]
if beyond >= 0 then
  local cooldown = math.min(ARGV[2] * 2 ^ math.min(beyond, 30), ARGV[3])
  redis.call('HSET', KEYS[1], 'open_until', now + math.floor(cooldown))
end
redis.call('EXPIRE', KEYS[1], 86400)
`;
