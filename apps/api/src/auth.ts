import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import {
  type ApiKeyRecord,
  type ApiKeyStore,
  AtelierError,
  DEFAULT_TENANT,
  type Scope,
  refusalOf,
} from '@atelier/shared';
import type { Request, RequestHandler } from 'express';

/** How long an answer of Redis about keys is used again: so long a revoked key may go on in another process. */
export const KEY_CACHE_MS = 2_000;
const TOUCH_EVERY_MS = 60_000;

/** On whose behalf a request acts. */
export interface Identity {
  /** Of the created key; null for a key of the environment and for none. */
  readonly id: string | null;
  readonly tenant: string;
  readonly scopes: readonly Scope[];
}

/** Who has a key of the environment, and everybody while there are no keys at all. */
const OWNER: Identity = Object.freeze({
  id: null,
  tenant: DEFAULT_TENANT,
  scopes: Object.freeze(['admin'] as const),
});

/**
 * Who a request comes from.
 *
 * ### Keys of the environment
 * `ATELIER_API_KEYS` are admin keys of the tenant `default`. They need no Redis.
 * ### Created keys
 * Found by their SHA-256 in Redis; see {@link ApiKeyStore}. What was found is used for {@link KEY_CACHE_MS}.
 * ### Open
 * While there is no key of either sort, every request is the owner's, whatever it has for a key: programs for other
 * services send theirs. The first created key ends that. When Redis cannot be asked, the last answer stands: without
 * Redis no key can have been made. An installation that was never asked about stays closed.
 */
export class Authenticator {
  readonly #digests: readonly Buffer[];
  readonly #keys: ApiKeyStore;
  /** By key; holds valid keys alone, so guessing does not fill it. */
  readonly #found = new Map<string, { record: ApiKeyRecord; until: number }>();
  readonly #touched = new Map<string, number>();
  #open: boolean | null;
  #openUntil = 0;

  /** @param environment the keys of ATELIER_API_KEYS */
  constructor(environment: readonly string[], keys: ApiKeyStore) {
    this.#digests = environment.map(sha256);
    this.#keys = keys;
    this.#open = environment.length === 0 ? null : false;
  }

  /** @throws AtelierError `unauthorized`; `queue_unavailable` when only Redis knows */
  async identify(authorization: string | undefined): Promise<Identity> {
    const token = bearerToken(authorization);
    if (token !== undefined && this.#isOfEnvironment(token)) return OWNER;
    // Asked first: while it is open there are no keys to look for.
    if (await this.isOpen()) return OWNER;
    const record = token === undefined ? null : await this.#find(token);
    const refusal = record && refusalOf(record);
    if (!record || refusal !== null) {
      const allowed = 'allowed is Bearer with a key of this installation';
      throw new AtelierError(
        'unauthorized',
        `Authorization: ${refusal === null ? '' : `${refusal}; `}${allowed}`,
      );
    }
    this.#touch(record.id);
    return record;
  }

  /** Whether there is no key at all, and so none is asked for. @throws AtelierError `queue_unavailable` */
  async isOpen(): Promise<boolean> {
    // There is no way back but a Redis that is emptied, and a restart.
    if (this.#open === false) return false;
    if (this.#open && Date.now() < this.#openUntil) return true;
    try {
      this.#open = !(await this.#keys.any());
    } catch (error) {
      if (this.#open === null) throw error;
    }
    this.#openUntil = Date.now() + KEY_CACHE_MS;
    return this.#open;
  }

  /** To be called after a key was made or revoked here, so that it counts at once. */
  forget(): void {
    this.#found.clear();
    this.#openUntil = 0;
  }

  async #find(token: string): Promise<ApiKeyRecord | null> {
    const known = this.#found.get(token);
    if (known && Date.now() < known.until) return known.record;
    this.#found.delete(token);
    const record = await this.#keys.find(token);
    if (record) this.#found.set(token, { record, until: Date.now() + KEY_CACHE_MS });
    return record;
  }

  /** At most once a minute; a request does not wait for it, nor fail with it. */
  #touch(id: string): void {
    const now = Date.now();
    if (now - (this.#touched.get(id) ?? 0) < TOUCH_EVERY_MS) return;
    this.#touched.set(id, now);
    this.#keys.touch(id).catch(() => this.#touched.delete(id));
  }

  #isOfEnvironment(token: string): boolean {
    const digest = sha256(token);
    // Every digest is compared, in constant time each, so that the time says nothing about which one is near.
    return this.#digests.map((known) => timingSafeEqual(known, digest)).includes(true);
  }
}

const identities = new WeakMap<IncomingMessage, Identity>();

/** Lets a request through whose key is one of the installation's, and notes whose it is. */
export function authenticate(authenticator: Authenticator): RequestHandler {
  return async (req, _res, next) => {
    identities.set(req, await authenticator.identify(req.get('authorization')));
    next();
  };
}

/** On whose behalf the request acts. @throws AtelierError `unauthorized` on a route that asks for no key */
export function identityOf(req: Request): Identity {
  const identity = identities.get(req);
  if (identity) return identity;
  throw new AtelierError('unauthorized', 'Authorization: this route was reached without a key');
}

/** What the log says of whom a request came from; nothing before its key was checked. */
export function identityForLog(req: IncomingMessage): { tenant?: string; key_id?: string } {
  const identity = identities.get(req);
  if (!identity) return {};
  return { tenant: identity.tenant, ...(identity.id === null ? {} : { key_id: identity.id }) };
}

/** Whose objects the request sees: all others do not exist for it. */
export function tenantOf(req: Request): string {
  return identityOf(req).tenant;
}

export const hasScope = ({ scopes }: Identity, scope: Scope): boolean =>
  scopes.includes(scope) || scopes.includes('admin');

function bearerToken(header: string | undefined): string | undefined {
  return /^Bearer +(\S+) *$/i.exec(header ?? '')?.[1];
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
