import { ApiKeyStore, AtelierError, WebhookDeliveries } from '@atelier/shared';
import express, { type Express } from 'express';
import helmet from 'helmet';
import { Authenticator, authenticate } from './auth.ts';
import type { ApiDeps } from './deps.ts';
import { docsRoute } from './docs-page.ts';
import { guardHost } from './host-guard.ts';
import { INDEX_STYLE_HASH, indexRoute } from './index-page.ts';
import { requestLog } from './logging.ts';
import { createApiMetrics } from './metrics.ts';
import { problemHandler } from './problem.ts';
import { catalogRoutes } from './routes/catalog.ts';
import { datasetArchiveRoute, datasetUploadRoutes } from './routes/dataset-uploads.ts';
import { datasetRoutes } from './routes/datasets.ts';
import { generationRoutes } from './routes/generations.ts';
import { keyRoutes } from './routes/keys.ts';
import { loraRoutes } from './routes/loras.ts';
import { operationRoutes } from './routes/operations.ts';
import { trainingRoutes } from './routes/trainings.ts';
import { webhookRoutes } from './routes/webhooks.ts';
import type { Submissions } from './submission.ts';
import { ScratchFolder } from './uploads/scratch.ts';

/** The HTTP side of the product around what it stands on; it opens and closes none of that. */
export function createApp(deps: ApiDeps, submissions: Submissions): Express {
  const { measure, registry } = createApiMetrics(deps.queues, new WebhookDeliveries(deps.redis));
  const app = express();
  app.disable('x-powered-by');
  // A query with nested objects is no part of this API.
  app.set('query parser', 'simple');
  app.use(requestLog(deps.log), measure, securityHeaders(), (_req, res, next) => {
    res.set('Cache-Control', 'private, no-cache');
    next();
  });

  app.use(guardHost(deps.config, deps.settings));

  operationRoutes(app, deps, registry);
  const keys = new ApiKeyStore(deps.redis);
  const authenticator = new Authenticator(deps.settings.keys, keys);
  indexRoute(app, deps, authenticator);
  docsRoute(app);
  datasetArchiveRoute(app, deps);
  app.use('/v1', authenticate(authenticator));
  generationRoutes(app, deps, submissions);
  const scratch = new ScratchFolder(deps.config.ATELIER_CACHE_DIR);
  scratch.clean().catch((err: unknown) => deps.log.warn({ err }, 'old uploads could not be removed'));
  loraRoutes(app, deps, scratch);
  // Before what would take "uploads" for an id.
  datasetUploadRoutes(app, deps, scratch);
  datasetRoutes(app, deps, scratch);
  trainingRoutes(app, deps, submissions);
  webhookRoutes(app, deps);
  catalogRoutes(app, deps);
  keyRoutes(app, deps, keys, authenticator);

  app.use((req) => {
    throw new AtelierError('not_found', `No route ${req.path.slice(0, 200)}; GET /openapi.json lists them`);
  });
  app.use(problemHandler);
  return app;
}

function securityHeaders() {
  return helmet({
    contentSecurityPolicy: {
      useDefaults: false,
      directives: {
        'default-src': ["'none'"],
        'img-src': ["'self'"],
        'style-src': [INDEX_STYLE_HASH],
        'base-uri': ["'none'"],
        'form-action': ["'none'"],
        'frame-ancestors': ["'none'"],
      },
    },
    // Whether there is TLS is known to the proxy that ends it.
    strictTransportSecurity: false,
  });
}
