import { AtelierError } from '@atelier/shared';
import type { IRouter, RequestHandler } from 'express';

type Method = 'get' | 'post';
type Handlers = Partial<Record<Method, RequestHandler | RequestHandler[]>>;

/** Registers the methods of one path; any other method is answered 405 with Allow, OPTIONS with Allow alone. */
export function resource(router: IRouter, path: string, handlers: Handlers): void {
  const route = router.route(path);
  const allowed: string[] = ['OPTIONS'];
  if (handlers.get) {
    route.get(handlers.get);
    allowed.push('GET', 'HEAD');
  }
  if (handlers.post) {
    route.post(handlers.post);
    allowed.push('POST');
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
