import type { Config } from '@atelier/shared';
import type { Request } from 'express';

/** What absolute URLs in an answer start with: the configured address, else the one that the request came to. */
export function originOf(req: Request, config: Pick<Config, 'ATELIER_PUBLIC_URL'>): string {
  const origin = config.ATELIER_PUBLIC_URL ?? `${req.protocol}://${req.get('host') ?? 'localhost'}`;
  return origin.replace(/\/+$/, '');
}
