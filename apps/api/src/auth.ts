import { createHash, timingSafeEqual } from 'node:crypto';
import { AtelierError, DEFAULT_TENANT } from '@atelier/shared';
import type { RequestHandler } from 'express';

/** Lets a request through that carries one of the keys; every request when there are none. */
export function authenticate(keys: readonly string[]): RequestHandler {
  const digests = keys.map(sha256);
  return (req, _res, next) => {
    if (digests.length === 0 || matches(bearerToken(req.get('authorization')), digests)) return next();
    throw new AtelierError(
      'unauthorized',
      'Authorization: allowed is Bearer with a key of this installation',
    );
  };
}

/** Whose jobs a request sees. */
export function tenantOf(): string {
  return DEFAULT_TENANT;
}

function bearerToken(header: string | undefined): string | undefined {
  return /^Bearer +(\S+) *$/i.exec(header ?? '')?.[1];
}

function matches(token: string | undefined, digests: readonly Buffer[]): boolean {
  if (token === undefined) return false;
  const digest = sha256(token);
  // Every digest is compared, in constant time each, so that the time says nothing about which one is near.
  return digests.map((known) => timingSafeEqual(known, digest)).includes(true);
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
