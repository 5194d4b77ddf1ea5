import { AtelierError, type Config } from '@atelier/shared';
import type { RequestHandler } from 'express';
import type { ApiSettings } from './settings.ts';
import { isLoopback } from './settings.ts';

/**
 * Without keys, "only this machine" is all that protects the API, and a web page in a browser on this machine gets
 * around it by a DNS name of its own that it points at 127.0.0.1 (DNS rebinding). The browser still says which name
 * it asked for: only names of this machine, and that of ATELIER_PUBLIC_URL, are answered.
 */
export function guardHost(
  config: Pick<Config, 'ATELIER_PUBLIC_URL'>,
  { keys }: Pick<ApiSettings, 'keys'>,
): RequestHandler {
  const publicHost = config.ATELIER_PUBLIC_URL && new URL(config.ATELIER_PUBLIC_URL).hostname;
  return (req, _res, next) => {
    const name = req.hostname?.replace(/^\[|\]$/g, '') ?? '';
    if (keys.length > 0 || isLoopback(name) || name === publicHost) return next();
    throw new AtelierError(
      'misdirected_request',
      `Host: found ${JSON.stringify(name.slice(0, 80))}, allowed without API keys are localhost` +
        `${publicHost ? ` and ${publicHost}` : ''}; set ATELIER_PUBLIC_URL or ATELIER_API_KEYS to use another`,
    );
  };
}
