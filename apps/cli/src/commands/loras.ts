import { createWriteStream, openAsBlob } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename, extname } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { LoraList, LoraVersionView, LoraView } from '@atelier/shared';
import { StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { bytes, dim, green, printJson, shorten, table } from '../output.ts';
import { slug } from './generate.ts';

interface Options {
  url: string;
  json?: boolean;
}

export interface ImportOptions extends Options {
  name?: string;
  model?: string;
  description?: string;
  weight?: number;
  trigger?: string[];
  tag?: string[];
}

export interface ExportOptions extends Options {
  format?: string;
  out?: string;
}

const pathOf = (name: string): string => `/v1/loras/${encodeURIComponent(name)}`;

/** The LoRAs of the studio. */
export async function listLoras(options: Options & { tag?: string }): Promise<void> {
  const client = new StudioClient(options.url);
  const loras: LoraView[] = [];
  for (let cursor: string | null = ''; cursor !== null;) {
    const query = new URLSearchParams({ limit: '100' });
    if (cursor !== '') query.set('cursor', cursor);
    if (options.tag !== undefined) query.set('tag', options.tag);
    const page: LoraList = await client.get(`/v1/loras?${query.toString()}`);
    loras.push(...page.data);
    cursor = page.next_cursor;
  }
  if (options.json) return printJson({ data: loras });
  const rows = loras.map(({ name, latest, default_weight, tags, trigger_words, description }) => [
    `${name}@${latest.version}`,
    rankOf(latest),
    bytes(latest.size),
    String(default_weight),
    tags.join(' '),
    shorten(trigger_words.join(', ') || description, 48),
  ]);
  const heading = ['name', 'rank', 'size', 'weight', 'tags', 'trigger words'];
  process.stdout.write(
    rows.length > 0 ? `${table(heading, rows)}\n` : 'no LoRAs yet: "atelier loras import <file>" adds one\n',
  );
}

/** Imports a file and, where options say so, describes the LoRA. */
export async function importLora(file: string, options: ImportOptions): Promise<void> {
  const client = new StudioClient(options.url);
  const info = await stat(file).catch((cause: unknown) => {
    throw new CliError('file_missing', `${file} cannot be read: ${String(cause)}`, { cause });
  });
  if (!info.isFile()) throw new CliError('file_missing', `${file} is no file`);
  const filename = basename(file);
  const name = options.name ?? slug(basename(file, extname(file)));
  const query = new URLSearchParams({ filename });
  if (options.model !== undefined) query.set('model', options.model);
  const response = await client.request(`${pathOf(name)}?${query.toString()}`, {
    method: 'PUT',
    body: await openAsBlob(file, { type: 'application/octet-stream' }),
  });
  const version = (await response.json()) as LoraVersionView;
  const { description, weight, trigger, tag } = options;
  const settings = { description, default_weight: weight, trigger_words: trigger, tags: tag };
  if (Object.values(settings).some((value) => value !== undefined))
    await client.patch(pathOf(name), settings);
  if (options.json) return printJson(version);
  const modules = version.modules.transformer + version.modules.text_encoder;
  const facts = [
    version.dialects.join(' + '),
    `rank ${rankOf(version)}`,
    `${modules} ${modules === 1 ? 'module' : 'modules'}`,
  ].join(', ');
  const verb = response.status === 200 ? 'is already' : 'imported as';
  process.stdout.write(`${green(`${filename} ${verb}`)} ${name}@${version.version} ${dim(`(${facts})`)}\n`);
  for (const warning of version.warnings) process.stdout.write(`  ${dim('note')} ${warning}\n`);
}

/** One LoRA with its latest version. */
export async function showLora(name: string, options: Options): Promise<void> {
  const lora = await new StudioClient(options.url).get<LoraView>(pathOf(name));
  if (options.json) return printJson(lora);
  const { latest } = lora;
  const rows: [string, string][] = [
    ['name', lora.name],
    ['versions', lora.versions.join(', ')],
    ['weight', String(lora.default_weight)],
    ['trigger words', lora.trigger_words.join(', ')],
    ['tags', lora.tags.join(' ')],
    ['description', lora.description],
    ['latest', `${lora.name}@${latest.version} of ${latest.provenance.imported_at}`],
    [
      'from',
      `${latest.provenance.source} ${latest.provenance.filename ?? latest.provenance.training_job ?? ''}`,
    ],
    ['form', latest.dialects.join(' + ')],
    ['rank', rankOf(latest)],
    ['modules', `${latest.modules.transformer} + ${latest.modules.text_encoder} of the text encoder`],
    ['checked for', latest.base_model ?? 'no model: its files were not at hand'],
    ['size', bytes(latest.size)],
    ['sha256', latest.sha256],
    ...latest.warnings.map((warning): [string, string] => ['note', warning]),
  ];
  const shown = rows.filter(([, value]) => value.trim() !== '');
  process.stdout.write(`${table(['', ''], shown).split('\n').slice(1).join('\n')}\n`);
}

/** Deletes a LoRA with all its versions. */
export async function removeLora(name: string, options: Options): Promise<void> {
  await new StudioClient(options.url).request(pathOf(name), { method: 'DELETE' });
  if (options.json) return printJson({ removed: name });
  process.stdout.write(`${green('removed')} ${name}\n`);
}

/** Saves the file of a LoRA, `name` or `name@version`. */
export async function exportLora(ref: string, options: ExportOptions): Promise<void> {
  const [name = '', version] = ref.split('@');
  const format = options.format ?? 'original';
  const query = new URLSearchParams({ format, ...(version === undefined ? {} : { version }) });
  const response = await new StudioClient(options.url).request(`${pathOf(name)}/file?${query.toString()}`);
  const offered = /filename="([^"/\\]+)"/.exec(response.headers.get('content-disposition') ?? '')?.[1];
  const file = options.out ?? offered ?? `${name}.safetensors`;
  if (!response.body) throw new CliError('no_file', `${ref} came without a file`);
  await pipeline(Readable.fromWeb(response.body), createWriteStream(file));
  const { size } = await stat(file);
  if (options.json) return printJson({ file, size });
  process.stdout.write(`${green('saved')} ${file} ${dim(`(${bytes(size)})`)}\n`);
}

function rankOf({ rank: { min, max } }: LoraVersionView): string {
  return min === max ? String(max) : `${min} to ${max}`;
}
