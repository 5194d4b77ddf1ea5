import type { JobWebhook, WebhookRequest } from '@atelier/shared';
import type { Request } from 'express';
import type { ApiDeps } from '../deps.ts';
import { originOf } from '../origin.ts';
import { invalid } from '../validation/validate.ts';
import {
  AddressRefused,
  type WebhookAllowance,
  hostOf,
  isAllowed,
  isLiteral,
  requireAddress,
} from './address.ts';

const FIELD = 'webhook.url';

/**
 * The webhook that a submission asks for, as its record keeps it; null when it asks for none.
 *
 * @throws AtelierError validation_failed
 */
export function webhookOf(
  { webhook }: { webhook?: WebhookRequest | undefined },
  req: Request,
  { config, settings }: Pick<ApiDeps, 'config' | 'settings'>,
): JobWebhook | null {
  if (!webhook) return null;
  checkWebhookUrl(webhook.url, settings.webhooks.allow);
  // As the parser writes it, which is ASCII: nothing in it can trouble who reads the record.
  return { ...webhook, url: new URL(webhook.url).href, origin: originOf(req, config) };
}

/**
 * Refuses a URL that no delivery could go to. Names are not looked up: what they mean counts when a delivery is sent.
 *
 * @throws AtelierError validation_failed
 */
export function checkWebhookUrl(text: string, allowance: WebhookAllowance): void {
  const problem = problemOf(text, allowance);
  if (problem) throw invalid([{ field: FIELD, message: problem }]);
}

function problemOf(text: string, allowance: WebhookAllowance): string | null {
  if (!URL.canParse(text)) return 'found no URL, allowed is https://host/path';
  const url = new URL(text);
  const host = hostOf(url);
  const named = isAllowed(allowance, host, isLiteral(host) ? host : undefined);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && named))
    return `found ${url.protocol}//${host}, allowed is https; http for what ATELIER_WEBHOOK_ALLOW names`;
  if (url.username || url.password) return 'found a name or password in the URL, which are not sent';
  try {
    if (isLiteral(host)) requireAddress(allowance, host, host);
  } catch (error) {
    if (error instanceof AddressRefused)
      return `${error.message}; ATELIER_WEBHOOK_ALLOW names those that are allowed`;
    throw error;
  }
  return null;
}
