import { createHash } from 'node:crypto';
import { DEFAULT_TENANT, type GenerationRecord } from '@atelier/shared';
import type { IRouter } from 'express';
import type { Authenticator } from './auth.ts';
import type { ApiDeps } from './deps.ts';
import { listJobs } from './list.ts';
import { originOf } from './origin.ts';
import { resource } from './resource.ts';

const PICTURES = 12;

const STYLE = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }
pre { padding: 1rem; overflow-x: auto; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
ul.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; padding: 0; }
ul.pictures li { list-style: none; font-size: 0.8rem; overflow-wrap: anywhere; }
ul.pictures img { display: block; width: 100%; height: auto; }
`;

/** Source expression of the page's one style element, for the Content-Security-Policy. */
export const INDEX_STYLE_HASH = `'sha256-${createHash('sha256').update(STYLE).digest('base64')}'`;

const LINKS: readonly [path: string, what: string][] = [
  ['/docs', 'the API to read and try'],
  ['/openapi.json', 'the API as an OpenAPI 3.1 document'],
  ['/v1/generations', 'all generations'],
  ['/v1/loras', 'LoRAs'],
  ['/v1/models', 'models'],
  ['/v1/workers', 'workers'],
  ['/v1/queue', 'the queue'],
  ['/readyz', 'whether it can work'],
  ['/metrics', 'metrics for Prometheus'],
];

/** GET /: what this is, how to use it, and the latest pictures where everybody who gets here may see them. */
export function indexRoute(router: IRouter, { config, jobs }: ApiDeps, authenticator: Authenticator): void {
  resource(router, '/', {
    get: async (req, res) => {
      // The page is there to help: also while Redis is away.
      const isOpen = await authenticator.isOpen().catch(() => false);
      const latest = isOpen
        ? await listJobs(jobs, DEFAULT_TENANT, 'generation', {
            status: 'succeeded',
            limit: String(PICTURES),
          }).catch(() => null)
        : null;
      res.type('html').send(renderIndex(originOf(req, config), latest?.records ?? [], isOpen));
    },
  });
}

/** The page as HTML; everything that came from a request is escaped. */
export function renderIndex(origin: string, latest: readonly GenerationRecord[], isOpen: boolean): string {
  const auth = isOpen ? '' : ` \\\n  -H 'Authorization: Bearer YOUR_KEY'`;
  const curl = `curl -sS ${origin}/v1/generations${auth} \\
  -H 'Content-Type: application/json' -H 'Prefer: wait=60' \\
  -d '{"prompt": "a red apple on a blue background"}'`;
  const pictures = latest.map(({ id, input, output }) => {
    const prompt = escapeHtml(input.prompt.slice(0, 120));
    const size = `width="${output?.images[0]?.width}" height="${output?.images[0]?.height}"`;
    const image = `<img src="/v1/generations/${id}/images/0" loading="lazy" ${size} alt="${prompt}">`;
    return `<li><a href="/v1/generations/${id}">${image}</a>${prompt}</li>`;
  });
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>atelier</title>
<style>${STYLE}</style>
</head>
<body>
<h1>atelier</h1>
<p>A self-hosted FLUX.1 studio: send a prompt, get a picture.</p>
<pre>${escapeHtml(curl)}</pre>
<p>The answer has the picture's URL. Without <code>Prefer</code> it comes at once, and the job is followed under its
<code>Location</code> or, step by step, <code>Location/events</code>.</p>
<ul>
${LINKS.map(([path, what]) => `<li><a href="${path}">${path}</a>: ${what}</li>`).join('\n')}
</ul>
${pictures.length > 0 ? `<h2>Latest pictures</h2>\n<ul class="pictures">\n${pictures.join('\n')}\n</ul>` : ''}
</body>
</html>
`;
}

const ESCAPES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ESCAPES[character]!);
}
