import { ApiKeyStore, type NewApiKey, SCOPES, type Scope } from '@atelier/shared';
import type { TestApi } from './api.ts';

/** Every scope but `admin`. */
export const USER_SCOPES: Scope[] = SCOPES.filter((scope) => scope !== 'admin');

/** A key as POST /v1/keys makes it. */
export const makeKey = (api: TestApi, tenant: string, scopes = USER_SCOPES): Promise<NewApiKey> =>
  new ApiKeyStore(api.client).create({ name: `${tenant}'s`, tenant, scopes }, { first: true });

export const bearer = (key: string): { Authorization: string } => ({ Authorization: `Bearer ${key}` });
