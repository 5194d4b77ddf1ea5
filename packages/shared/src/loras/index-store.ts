import type { Redis } from 'ioredis';
import { KEY_PREFIX, checkedTenant } from '../jobs/keys.ts';
import { queueCall } from '../redis.ts';
import type { LoraRecord } from './record.ts';

/** Hash: the record of each LoRA by name, and under an empty name that the index is whole. */
const indexKey = (tenant: string): string => `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:loras`;
const WHOLE = '';

export const lockKey = (tenant: string, name: string): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:lora-lock:${name}`;

/**
 * The LoRAs of a tenant in Redis: a copy of what the object store has, for reads. A reader gets null instead of an
 * answer when the index is not whole, as after a FLUSHALL, and then has to rebuild it.
 */
export class LoraIndex {
  readonly #redis: Redis;

  constructor(redis: Redis) {
    this.#redis = redis;
  }

  /** The records of the names, undefined for those that there are not. */
  async get(tenant: string, names: readonly string[]): Promise<(LoraRecord | undefined)[] | null> {
    const [whole, ...texts] = await queueCall(() => this.#redis.hmget(indexKey(tenant), WHOLE, ...names));
    if (whole === null || whole === undefined) return null;
    return texts.map((text) => (text ? (JSON.parse(text) as LoraRecord) : undefined));
  }

  /** All names in order. */
  async names(tenant: string): Promise<string[] | null> {
    const fields = await queueCall(() => this.#redis.hkeys(indexKey(tenant)));
    if (!fields.includes(WHOLE)) return null;
    return fields.filter((field) => field !== WHOLE).sort();
  }

  /** Names that are there, whether the index is whole or not. */
  async known(tenant: string): Promise<string[]> {
    const fields = await queueCall(() => this.#redis.hkeys(indexKey(tenant)));
    return fields.filter((field) => field !== WHOLE);
  }

  async put(tenant: string, record: LoraRecord): Promise<void> {
    await queueCall(() => this.#redis.hset(indexKey(tenant), record.name, JSON.stringify(record)));
  }

  async remove(tenant: string, name: string): Promise<void> {
    await queueCall(() => this.#redis.hdel(indexKey(tenant), name));
  }

  async markWhole(tenant: string): Promise<void> {
    await queueCall(() => this.#redis.hset(indexKey(tenant), WHOLE, new Date().toISOString()));
  }
}
