import { isIP } from 'node:net';
import ipaddr from 'ipaddr.js';
import { z } from 'zod';
import type { WebhookAllowance } from './address.ts';

const SECRET = /^whsec_[A-Za-z0-9+/]{32,86}={0,2}$/;
const NAME = /^(?=.{1,253}$)[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$/;

const list = (text: string): string[] =>
  text
    .split(',')
    .map((item) => item.trim().toLowerCase())
    .filter(Boolean);

/** Variables of webhooks; part of the API's environment. */
export const WEBHOOK_ENV = {
  /** Whether this process sends webhooks; off where other processes of the installation do. */
  ATELIER_WEBHOOKS: z
    .enum(['true', 'false', '1', '0'])
    .default('true')
    .transform((value) => value === 'true' || value === '1'),
  /** Signs webhooks: `whsec_` and 24 to 64 bytes in base64. One that is made once and kept in Redis when absent. */
  ATELIER_WEBHOOK_SECRET: z
    .string()
    .default('')
    .refine((secret) => secret === '' || SECRET.test(secret), {
      error: 'allowed is whsec_ and 24 to 64 bytes in base64, such as of `openssl rand -base64 32`',
    }),
  /** Host names and networks (10.1.0.0/16) that webhooks may reach although they are private, over http too. */
  ATELIER_WEBHOOK_ALLOW: z
    .string()
    .default('')
    .transform(list)
    .refine((items) => items.every((item) => isNetwork(item) || NAME.test(item)), {
      error: 'allowed are host names, addresses and networks such as 10.1.0.0/16, separated by commas',
    }),
  /** Seconds from a failed attempt to the next; a delivery that failed once more than there are numbers is given up. */
  ATELIER_WEBHOOK_RETRY_S: z
    .string()
    .default('5,30,120,600,3600,10800,28800')
    .transform((text) => list(text).map(Number))
    .pipe(
      z
        .array(
          z
            .number()
            .positive()
            .max(7 * 24 * 3600),
        )
        .max(30),
    ),
};

export interface WebhookSettings {
  readonly deliver: boolean;
  /** null: each tenant has one of its own in Redis. */
  readonly secret: string | null;
  readonly allow: WebhookAllowance;
  readonly retryS: readonly number[];
}

type Env = z.infer<z.ZodObject<typeof WEBHOOK_ENV>>;

/**
 * @param isLocal only programs of this machine can submit jobs. They can reach its other ports themselves, so that
 *   their webhooks may, too.
 */
export function webhookSettings(env: Env, isLocal: boolean): WebhookSettings {
  const items = isLocal
    ? [...env.ATELIER_WEBHOOK_ALLOW, 'localhost', '127.0.0.0/8', '::1']
    : env.ATELIER_WEBHOOK_ALLOW;
  const networks = items.filter(isNetwork).map((item) => {
    if (item.includes('/')) return item;
    return `${item}/${isIP(item) === 4 ? 32 : 128}`;
  });
  return Object.freeze({
    deliver: env.ATELIER_WEBHOOKS,
    secret: env.ATELIER_WEBHOOK_SECRET || null,
    allow: Object.freeze({ names: items.filter((item) => !isNetwork(item)), networks }),
    retryS: env.ATELIER_WEBHOOK_RETRY_S,
  });
}

function isNetwork(item: string): boolean {
  return ipaddr.isValidCIDR(item) || isIP(item) !== 0;
}
