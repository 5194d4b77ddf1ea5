import { AtelierError, type Scope } from '@atelier/shared';
import type { RequestHandler } from 'express';
import { hasScope, identityOf } from './auth.ts';

/**
 * The scope that each route below /v1 asks for, by method and path as the OpenAPI document writes them; null for one
 * that asks for no key. Routes are registered and documented from this table alone: one that is not in it does not
 * start.
 */
export const ROUTE_SCOPES: Readonly<Record<string, Scope | null>> = Object.freeze({
  'GET /v1/generations': 'read',
  'POST /v1/generations': 'generate',
  'GET /v1/generations/{id}': 'read',
  'POST /v1/generations/{id}/cancel': 'generate',
  'GET /v1/generations/{id}/events': 'read',
  'GET /v1/generations/{id}/images/{index}': 'read',
  'GET /v1/generations/{id}/deliveries': 'read',
  'POST /v1/generations/{id}/deliveries/{delivery}/redeliver': 'generate',

  'GET /v1/loras': 'read',
  'GET /v1/loras/{name}': 'read',
  'PUT /v1/loras/{name}': 'loras:write',
  'PATCH /v1/loras/{name}': 'loras:write',
  'DELETE /v1/loras/{name}': 'loras:write',
  'GET /v1/loras/{name}/versions/{version}': 'read',
  'GET /v1/loras/{name}/file': 'read',

  'GET /v1/datasets': 'read',
  'POST /v1/datasets': 'datasets:write',
  'GET /v1/datasets/{id}': 'read',
  'DELETE /v1/datasets/{id}': 'datasets:write',
  'POST /v1/datasets/uploads': 'datasets:write',
  // The announcement's token opens it, as a signature opens a URL of a bucket.
  'PUT /v1/datasets/uploads/{id}': null,
  'POST /v1/datasets/uploads/{id}/complete': 'datasets:write',

  'GET /v1/trainings': 'read',
  'POST /v1/trainings': 'train',
  'GET /v1/trainings/{id}': 'read',
  'POST /v1/trainings/{id}/cancel': 'train',
  'GET /v1/trainings/{id}/events': 'read',
  'GET /v1/trainings/{id}/metrics': 'read',
  'GET /v1/trainings/{id}/checkpoints': 'read',
  'GET /v1/trainings/{id}/samples/{step}/{index}': 'read',
  'GET /v1/trainings/{id}/deliveries': 'read',
  'POST /v1/trainings/{id}/deliveries/{delivery}/redeliver': 'train',

  // Whoever has it can forge what a receiver trusts: not for keys that only look.
  'GET /v1/webhooks/secret': 'generate',

  'GET /v1/models': 'read',
  'GET /v1/workers': 'read',
  'GET /v1/queue': 'read',

  'GET /v1/keys': 'admin',
  'POST /v1/keys': 'admin',
  'DELETE /v1/keys/{id}': 'admin',
  'GET /v1/tenants': 'admin',
});

/**
 * The scope of a route; null where none is asked for.
 * @param path as Express or as OpenAPI writes it
 * @throws Error for a route below /v1 that the table lacks
 */
export function scopeOf(method: string, path: string): Scope | null {
  if (!path.startsWith('/v1/')) return null;
  const route = `${method.toUpperCase()} ${path.replaceAll(/:(\w+)/g, '{$1}')}`;
  const scope = ROUTE_SCOPES[route];
  if (scope === undefined)
    throw new Error(`${route} has no scope: add it to ROUTE_SCOPES in apps/api/src/scopes.ts`);
  return scope;
}

/** Lets a request through whose key has the scope. */
export function requireScope(scope: Scope): RequestHandler {
  return (req, res, next) => {
    const identity = identityOf(req);
    if (hasScope(identity, scope)) return next();
    // RFC 6750, section 3.1.
    res.set('WWW-Authenticate', `Bearer error="insufficient_scope", scope="${scope}"`);
    throw new AtelierError(
      'forbidden',
      `Authorization: this key has ${identity.scopes.join(', ')}; ${req.method} ${req.path} needs ${scope}`,
    );
  };
}
