import { TENANT_NAME } from '../contracts/api-key.ts';
import type { JobKind } from '../contracts/job.ts';
import type { JobRef } from './record.ts';

/** Prefix of every Redis key of the product, BullMQ's too: the braces keep all of them in one cluster slot. */
export const KEY_PREFIX = '{atelier}';

export function checkedTenant(tenant: string): string {
  if (!TENANT_NAME.test(tenant))
    throw new RangeError(`tenant ${JSON.stringify(tenant)} does not match ${TENANT_NAME}`);
  return tenant;
}

/** Hash: the record. */
export const recordKey = ({ tenant, id }: JobRef): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:job:${id}`;

/** Sorted set with equal scores, so in order of id, which is that of creation by millisecond: a tenant's jobs. */
export const indexKey = (tenant: string, kind: JobKind): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:jobs:${kind}`;

/** Sorted set by time of creation: `tenant/id` of each job that has not ended, over all tenants. */
export const openKey = (kind: JobKind): string => `${KEY_PREFIX}:open:${kind}`;

/** Channel: a JobEvent for each change of a job. */
export const eventChannel = ({ tenant, id }: JobRef): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:events:${id}`;

/** Channel: `tenant/id` of each running job that was asked to stop. */
export const CANCEL_CHANNEL = `${KEY_PREFIX}:cancel`;

export const formatRef = ({ tenant, id }: JobRef): string => `${tenant}/${id}`;

export function parseRef(text: string): JobRef {
  const slash = text.indexOf('/');
  return { tenant: text.slice(0, slash), id: text.slice(slash + 1) };
}
