import { AtelierError } from '@atelier/shared';
import type { IRouter, RequestHandler } from 'express';
import { requireScope, scopeOf } from './scopes.ts';

const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const;
type Method = (typeof METHODS)[number];
type Handlers = Partial<Record<Method, RequestHandler | RequestHandler[]>>;

/**
 * Registers the methods of one path, each behind the scope that it asks for; any other method is answered 405 with
 * Allow, OPTIONS with Allow alone.
 */
export function resource(router: IRouter, path: string, handlers: Handlers): void {
  const route = router.route(path);
  const allowed: string[] = ['OPTIONS'];
  for (const method of METHODS) {
    const handler = handlers[method];
    if (!handler) continue;
    const scope = scopeOf(method, path);
    route[method](...(scope === null ? [] : [requireScope(scope)]), handler);
    allowed.push(method.toUpperCase(), ...(method === 'get' ? ['HEAD'] : []));
  }
  const allow = allowed.sort().join(', ');
  route.all((req, res) => {
    res.set('Allow', allow);
    if (req.method === 'OPTIONS') {
      res.status(204).end();
      return;
    }
    throw new AtelierError('method_not_allowed', `${req.method} ${req.path}: allowed are ${allow}`);
  });
}
