import { createHmac, randomBytes } from 'node:crypto';
import type { Redis } from 'ioredis';
import { DEFAULT_TENANT } from '../jobs/record.ts';
import { queueCall } from '../redis.ts';
import { webhookSecretKey } from './keys.ts';

const PREFIX = 'whsec_';

/**
 * What the webhooks of a tenant are signed with. No two tenants share one: a receiver of one could forge the webhooks
 * of the other.
 *
 * With a secret of the installation it follows from that and the tenant, and the default tenant's is that itself;
 * without (null), it is made at the first use and kept in Redis.
 *
 * @returns `whsec_` and base64
 * @throws AtelierError queue_unavailable
 */
export async function webhookSecret(
  redis: Redis,
  installation: string | null,
  tenant: string,
): Promise<string> {
  if (installation !== null) {
    if (tenant === DEFAULT_TENANT) return installation;
    const key = Buffer.from(installation.slice(PREFIX.length), 'base64');
    return PREFIX + createHmac('sha256', key).update(`tenant ${tenant}`).digest('base64');
  }
  const name = webhookSecretKey(tenant);
  return queueCall(async () => {
    // Of several processes that make one at once, the first is right.
    await redis.setnx(name, PREFIX + randomBytes(32).toString('base64'));
    return (await redis.get(name))!;
  });
}
