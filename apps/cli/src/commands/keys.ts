import type { ApiKey, ApiKeyList, NewApiKey } from '@atelier/shared';
import { StudioClient } from '../client.ts';
import { bold, dim, green, printJson, shorten, table } from '../output.ts';

interface Options {
  url: string;
  json?: boolean;
}

export interface CreateOptions extends Options {
  name: string;
  tenant?: string;
  scope?: string[];
  expires?: string;
}

/** Makes a key. It alone is on stdout, for `KEY=$(atelier keys create …)`; what there is to say is on stderr. */
export async function createKey({ url, json, name, tenant, scope, expires }: CreateOptions): Promise<void> {
  const made = await new StudioClient(url).post<NewApiKey>('/v1/keys', {
    name,
    scopes: scope ?? ['read', 'generate'],
    ...(tenant === undefined ? {} : { tenant }),
    ...(expires === undefined ? {} : { expires_at: expires }),
  });
  if (json) return printJson(made);
  process.stderr.write(
    `${green('created')} ${made.id} of tenant ${bold(made.tenant)} with ${made.scopes.join(', ')}\n` +
      `${dim('The key is shown this once; programs take it from ATELIER_API_KEY:')}\n`,
  );
  process.stdout.write(`${made.key}\n`);
}

/** The keys of every tenant, or of one. */
export async function listKeys(options: Options & { tenant?: string }): Promise<void> {
  const client = new StudioClient(options.url);
  const keys: ApiKey[] = [];
  for (let cursor: string | null = ''; cursor !== null;) {
    const query = new URLSearchParams({ limit: '100' });
    if (cursor !== '') query.set('cursor', cursor);
    if (options.tenant !== undefined) query.set('tenant', options.tenant);
    const page: ApiKeyList = await client.get(`/v1/keys?${query.toString()}`);
    keys.push(...page.data);
    cursor = page.next_cursor;
  }
  if (options.json) return printJson({ data: keys });
  const rows = keys.map((key) => [
    key.id,
    shorten(key.name, 24),
    key.tenant,
    key.scopes.join(' '),
    `${key.prefix}…${key.last_four}`,
    minute(key.last_used_at) ?? 'never',
    stateOf(key),
  ]);
  const heading = ['id', 'name', 'tenant', 'scopes', 'key', 'last used (UTC)', 'state'];
  process.stdout.write(
    rows.length > 0
      ? `${table(heading, rows)}\n`
      : 'no keys yet: "atelier keys create --name <name>" makes one\n',
  );
}

/** Revokes a key for good. */
export async function revokeKey(id: string, options: Options): Promise<void> {
  const response = await new StudioClient(options.url).request(`/v1/keys/${encodeURIComponent(id)}`, {
    method: 'DELETE',
  });
  const key = (await response.json()) as ApiKey;
  if (options.json) return printJson(key);
  process.stdout.write(`${green('revoked')} ${key.id} (${key.name}, ${key.prefix}…${key.last_four})\n`);
}

function stateOf({ expires_at, revoked_at }: ApiKey): string {
  if (revoked_at !== null) return `revoked ${minute(revoked_at)}`;
  if (expires_at === null) return 'valid';
  return `${Date.parse(expires_at) <= Date.now() ? 'expired' : 'valid until'} ${minute(expires_at)}`;
}

const minute = (time: string | null): string | null => time && time.slice(0, 16).replace('T', ' ');
