import express, { type IRouter } from 'express';
import { getAbsoluteFSPath } from 'swagger-ui-dist';
import { resource } from './resource.ts';

const ASSETS = '/docs/assets';

const PAGE = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>atelier: API</title>
<link rel="stylesheet" href="${ASSETS}/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="${ASSETS}/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
`;

/** A file of its own: the Content-Security-Policy allows no script inside the page. */
const START = `SwaggerUIBundle({ url: '/openapi.json', dom_id: '#docs', deepLinking: true });\n`;

/** Swagger UI needs styles in attributes and pictures in data URIs; scripts and requests stay with this server. */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

/** GET /docs: the OpenAPI document as a page that can send requests; everything it loads is served from here. */
export function docsRoute(router: IRouter): void {
  resource(router, '/docs', {
    get: (_req, res) => void res.set('Content-Security-Policy', POLICY).type('html').send(PAGE),
  });
  resource(router, '/docs/start.js', { get: (_req, res) => void res.type('js').send(START) });
  router.use(ASSETS, express.static(getAbsoluteFSPath(), { index: false, maxAge: '1d' }));
}
