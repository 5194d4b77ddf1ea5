import { createHash, randomInt, randomUUIDv7 } from 'node:crypto';
import type { Redis } from 'ioredis';
import type { ApiKey, ApiKeyRequest, NewApiKey, TenantView } from '../contracts/api-key.ts';
import type { JobKind } from '../contracts/job.ts';
import { AtelierError } from '../errors.ts';
import { KEY_PREFIX, indexKey } from '../jobs/keys.ts';
import { DEFAULT_TENANT } from '../jobs/record.ts';
import { queueCall } from '../redis.ts';

/** What is kept of a key: everything but the key. */
export type ApiKeyRecord = Omit<ApiKey, 'last_used_at'>;

/** Hash: the record of each key by its SHA-256 in hex. */
const KEYS = `${KEY_PREFIX}:api-keys`;
/** Hash: that digest by the key's id. */
const DIGESTS = `${KEY_PREFIX}:api-keys:digests`;
/** Hash: when a key was last used, by its id. Apart from the records, so that a use can never undo a revocation. */
const USED = `${KEY_PREFIX}:api-keys:used`;

/** KEYS: records, digests. ARGV: digest, id, record, whether there must be other keys already. 0 when there are none. */
const CREATE_SCRIPT = `
if ARGV[4] == '1' and redis.call('HLEN', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
return 1
`;

const LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789';
const BASE62 = `ABCDEFGHIJKLMNOPQRSTUVWXYZ${LETTERS}`;
const PREFIX_LENGTH = 8;
/** 238 bits: no search finds one, so one round of SHA-256 without salt keeps it. */
const SECRET_LENGTH = 40;
const KEY_FORM = new RegExp(`^atl_[a-z0-9]{${PREFIX_LENGTH}}_[A-Za-z0-9]{${SECRET_LENGTH}}$`);
const KEY_ID = /^key_[0-9a-f]{32}$/;

/**
 * The API keys of an installation, in Redis, by their SHA-256 alone: whoever reads the database has none of them.
 * Every method rejects with AtelierError `queue_unavailable` while Redis is away.
 */
export class ApiKeyStore {
  readonly #redis: Redis;

  constructor(redis: Redis) {
    this.#redis = redis;
  }

  /**
   * Makes a key; the answer is the only place where it ever is.
   * @param first whether it may be the first one of the installation
   * @throws AtelierError `conflict` when it would be and may not
   */
  async create(request: ApiKeyRequest, { first }: { first: boolean }): Promise<NewApiKey> {
    const prefix = `atl_${randomText(LETTERS, PREFIX_LENGTH)}`;
    const key = `${prefix}_${randomText(BASE62, SECRET_LENGTH)}`;
    const record: ApiKeyRecord = {
      id: `key_${randomUUIDv7().replaceAll('-', '')}`,
      name: request.name,
      tenant: request.tenant,
      scopes: [...new Set(request.scopes)],
      prefix,
      last_four: key.slice(-4),
      created_at: new Date().toISOString(),
      expires_at: request.expires_at ?? null,
      revoked_at: null,
    };
    const argv = [digestOf(key), record.id, JSON.stringify(record), first ? '0' : '1'];
    const created = await queueCall(() => this.#redis.eval(CREATE_SCRIPT, 2, KEYS, DIGESTS, ...argv));
    if (created !== 1) {
      throw new AtelierError(
        'conflict',
        'The first key of an installation without ATELIER_API_KEYS needs the scope admin and no expires_at: ' +
          'from then on every request is asked for a key',
      );
    }
    return { ...record, last_used_at: null, key };
  }

  /** The record of a key, revoked and expired ones too; null for what is none. One HGET. */
  async find(key: string): Promise<ApiKeyRecord | null> {
    if (!KEY_FORM.test(key)) return null;
    return parse(await queueCall(() => this.#redis.hget(KEYS, digestOf(key))));
  }

  /** Whether there is any key, be it revoked. */
  async any(): Promise<boolean> {
    return (await queueCall(() => this.#redis.hlen(KEYS))) > 0;
  }

  /** Notes that a key was used now. */
  async touch(id: string): Promise<void> {
    await queueCall(() => this.#redis.hset(USED, id, new Date().toISOString()));
  }

  /** A page in order of creation; `cursor` is the id of the last key of the page before. */
  async list({
    cursor = '',
    limit,
    tenant,
  }: {
    cursor?: string | undefined;
    limit: number;
    tenant?: string | undefined;
  }): Promise<{ keys: ApiKey[]; cursor: string | null }> {
    const records = await this.#all();
    const after = records
      .filter((record) => record.id > cursor && (tenant === undefined || record.tenant === tenant))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    const page = after.slice(0, limit);
    return { keys: await this.#withUse(page), cursor: after.length > limit ? page.at(-1)!.id : null };
  }

  /** Revokes a key; again changes nothing. @throws AtelierError `not_found` */
  async revoke(id: string): Promise<ApiKey> {
    const digest = KEY_ID.test(id) ? await queueCall(() => this.#redis.hget(DIGESTS, id)) : null;
    const record = digest && parse(await queueCall(() => this.#redis.hget(KEYS, digest)));
    if (!record) throw new AtelierError('not_found', `No key has the id ${JSON.stringify(id.slice(0, 64))}`);
    const revoked = { ...record, revoked_at: record.revoked_at ?? new Date().toISOString() };
    await queueCall(() => this.#redis.hset(KEYS, digest, JSON.stringify(revoked)));
    return (await this.#withUse([revoked]))[0]!;
  }

  /** `default` and every tenant that has had a key, in order, with the number of its usable keys. */
  async tenants(): Promise<Map<string, number>> {
    const usable = new Map([[DEFAULT_TENANT, 0]]);
    for (const record of await this.#all())
      usable.set(record.tenant, (usable.get(record.tenant) ?? 0) + (refusalOf(record) === null ? 1 : 0));
    return new Map([...usable].sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /** The tenants of {@link tenants} with what they have. */
  async describeTenants(): Promise<TenantView[]> {
    return Promise.all(
      [...(await this.tenants())].map(async ([name, keys]) => {
        const count = (kind: JobKind) => queueCall(() => this.#redis.zcard(indexKey(name, kind)));
        const [generations, trainings] = await Promise.all([count('generation'), count('training')]);
        return { name, keys, generations, trainings };
      }),
    );
  }

  async #all(): Promise<ApiKeyRecord[]> {
    return (await queueCall(() => this.#redis.hvals(KEYS))).map((text) => parse(text)!);
  }

  async #withUse(records: readonly ApiKeyRecord[]): Promise<ApiKey[]> {
    if (records.length === 0) return [];
    const used = await queueCall(() => this.#redis.hmget(USED, ...records.map(({ id }) => id)));
    return records.map((record, i) => ({ ...record, last_used_at: used[i] ?? null }));
  }
}

/** Why a key is refused now; null when it is not. */
export function refusalOf({ expires_at, revoked_at }: ApiKeyRecord): string | null {
  if (revoked_at !== null) return `this key was revoked at ${revoked_at}`;
  return expires_at !== null && Date.parse(expires_at) <= Date.now()
    ? `this key expired at ${expires_at}`
    : null;
}

const digestOf = (key: string): string => createHash('sha256').update(key).digest('hex');

const parse = (text: string | null): ApiKeyRecord | null =>
  text === null ? null : (JSON.parse(text) as ApiKeyRecord);

/** Every letter alike: `randomInt` has no bias. */
const randomText = (alphabet: string, length: number): string =>
  Array.from({ length }, () => alphabet[randomInt(alphabet.length)]).join('');
