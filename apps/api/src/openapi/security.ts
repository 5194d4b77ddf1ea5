import type { ZodOpenApiOperationObject, ZodOpenApiPathsObject } from 'zod-openapi';
import { scopeOf } from '../scopes.ts';
import { problems } from './problems.ts';

const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const;

/**
 * The paths with what each operation asks for: the key with its scope, as OpenAPI 3.1 names roles of a scheme that is
 * not OAuth, and the answer 403. The empty alternative is that of an installation without any keys.
 * @throws Error for an operation below /v1 whose scope is not stated
 */
export function secured(paths: ZodOpenApiPathsObject): ZodOpenApiPathsObject {
  return Object.fromEntries(
    Object.entries(paths).map(([path, item]) => {
      const operations = METHODS.flatMap((method) => {
        const operation = item[method];
        return operation ? [[method, withScope(method, path, operation)] as const] : [];
      });
      return [path, { ...item, ...Object.fromEntries(operations) }];
    }),
  );
}

function withScope(
  method: string,
  path: string,
  operation: ZodOpenApiOperationObject,
): ZodOpenApiOperationObject {
  const scope = scopeOf(method, path);
  if (scope === null) return { ...operation, security: [] };
  const needs = `Needs the scope \`${scope}\`.`;
  return {
    ...operation,
    description: operation.description === undefined ? needs : `${operation.description} ${needs}`,
    security: [{ key: [scope] }, {}],
    responses: { ...problems('forbidden'), ...operation.responses },
  };
}
