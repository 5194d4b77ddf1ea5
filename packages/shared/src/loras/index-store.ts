import { randomUUID } from 'node:crypto';
import type { Redis } from 'ioredis';
import { LORA_NAME } from '../contracts/lora.ts';
import { KEY_PREFIX, checkedTenant } from '../jobs/keys.ts';
import { queueCall } from '../redis.ts';
import type { LoraRecord } from './record.ts';

/** Hash: the record of each LoRA by name, and under an empty name that the index is whole. */
const indexKey = (tenant: string): string => `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:loras`;
const WHOLE = '';

/** KEYS: index. ARGV: mark, field of wholeness, its value. */
const END_SCRIPT = `
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
`;

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
    return fields.includes(WHOLE) ? fields.filter((field) => LORA_NAME.test(field)).sort() : null;
  }

  /** Names that are there, whether the index is whole or not. */
  async known(tenant: string): Promise<string[]> {
    const fields = await queueCall(() => this.#redis.hkeys(indexKey(tenant)));
    return fields.filter((field) => LORA_NAME.test(field));
  }

  async put(tenant: string, record: LoraRecord): Promise<void> {
    await queueCall(() => this.#redis.hset(indexKey(tenant), record.name, JSON.stringify(record)));
  }

  async remove(tenant: string, name: string): Promise<void> {
    await queueCall(() => this.#redis.hdel(indexKey(tenant), name));
  }

  /** Says that the index lacks something: the next reader rebuilds it. */
  async markBroken(tenant: string): Promise<void> {
    await queueCall(() => this.#redis.hdel(indexKey(tenant), WHOLE));
  }

  /** Leaves a mark in the index, which goes with it when Redis loses it. */
  async beginRebuild(tenant: string): Promise<string> {
    const mark = `#${randomUUID()}`;
    await queueCall(() => this.#redis.hset(indexKey(tenant), mark, new Date().toISOString()));
    return mark;
  }

  /** Says that the index is whole; false when it was lost since the rebuild began. */
  async endRebuild(tenant: string, mark: string): Promise<boolean> {
    const argv = [mark, WHOLE, new Date().toISOString()];
    return (await queueCall(() => this.#redis.eval(END_SCRIPT, 1, indexKey(tenant), ...argv))) === 1;
  }
}
