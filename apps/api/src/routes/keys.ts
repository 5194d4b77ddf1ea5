import {
  type ApiKeyList,
  ApiKeyListQuery,
  ApiKeyRequest,
  type ApiKeyStore,
  type NewApiKey,
  type TenantList,
} from '@atelier/shared';
import type { IRouter } from 'express';
import type { Authenticator } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { jsonBody } from '../json-body.ts';
import { resource } from '../resource.ts';
import { validate } from '../validation/validate.ts';

/** What an operator does: keys of every tenant, and who the tenants are. */
export function keyRoutes(
  router: IRouter,
  { settings }: Pick<ApiDeps, 'settings'>,
  keys: ApiKeyStore,
  authenticator: Authenticator,
): void {
  resource(router, '/v1/keys', {
    get: async (req, res) => {
      const page = await keys.list(validate(ApiKeyListQuery, req.query, 'query'));
      res.json({ data: page.keys, next_cursor: page.cursor } satisfies ApiKeyList);
    },

    post: [
      ...jsonBody(settings.maxBodyBytes),
      async (req, res) => {
        const request = validate(ApiKeyRequest, req.body);
        // The first key closes the installation: it must be able to make the others.
        const first =
          settings.keys.length > 0 || (request.scopes.includes('admin') && request.expires_at === undefined);
        const key = await keys.create(request, { first });
        authenticator.forget();
        res.set('Cache-Control', 'no-store').status(201);
        res.json(key satisfies NewApiKey);
      },
    ],
  });

  resource(router, '/v1/keys/:id', {
    delete: async (req, res) => {
      const key = await keys.revoke(String(req.params['id']));
      authenticator.forget();
      res.json(key);
    },
  });

  resource(router, '/v1/tenants', {
    get: async (_req, res) => {
      res.json({ data: await keys.describeTenants() } satisfies TenantList);
    },
  });
}
