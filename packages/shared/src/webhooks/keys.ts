import { KEY_PREFIX, checkedTenant } from '../jobs/keys.ts';

/** Sorted set: `tenant/job/event` of each delivery that is not over, by the Unix time in ms when it is due. */
export const DUE_KEY = `${KEY_PREFIX}:webhooks:due`;

/** Channel: a message says that something is due now. */
export const DUE_CHANNEL = `${KEY_PREFIX}:webhooks:wake`;

/** Hash: the breaker of an endpoint. By tenant, so that one's failures keep nobody else from a host that both use. */
export const breakerKey = (tenant: string, origin: string): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:webhook-breaker:${origin}`;

/** String: what the webhooks of a tenant are signed with. */
export const webhookSecretKey = (tenant: string): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:webhook-secret`;
