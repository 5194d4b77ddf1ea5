import { openAsBlob } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, dirname, extname, join, resolve } from 'node:path';
import type { Dataset, DatasetList, DatasetSummary } from '@atelier/shared';
import { type LocalFile, archiveOfFile, archiveOfFiles, uploadArchive } from '../archive-upload.ts';
import { StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { bytes, dim, green, printJson, table } from '../output.ts';
import { progressBar } from '../progress.ts';
import { slug } from './generate.ts';

interface Options {
  url: string;
  json?: boolean;
}

/** What is to be uploaded, and about how many bytes it has. */
interface Upload {
  /** null when it is an archive. */
  files: LocalFile[] | null;
  size: number;
}

/** From here on an archive goes to the studio's bucket rather than through the studio. */
const ANNOUNCE_FROM_BYTES = 256 * 2 ** 20;

/** The datasets of the studio, oldest first. */
export async function listDatasets(options: Options): Promise<void> {
  const client = new StudioClient(options.url);
  const datasets: DatasetSummary[] = [];
  for (let cursor: string | null = ''; cursor !== null;) {
    const query = new URLSearchParams({ limit: '100', ...(cursor === '' ? {} : { cursor }) });
    const page: DatasetList = await client.get(`/v1/datasets?${query.toString()}`);
    datasets.push(...page.data);
    cursor = page.next_cursor;
  }
  if (options.json) return printJson({ data: datasets });
  const rows = datasets.map(({ id, name, items, bytes: size, created_at }) => [
    id,
    name,
    String(items),
    bytes(size),
    created_at,
  ]);
  process.stdout.write(
    rows.length > 0
      ? `${table(['id', 'name', 'images', 'size', 'created'], rows)}\n`
      : 'no datasets yet: "atelier datasets upload <folder>" adds one\n',
  );
}

/** Uploads a folder with `images/` and `prompts/`, or a zip archive of one. */
export async function uploadDataset(path: string, options: Options & { name?: string }): Promise<void> {
  const dataset = await sendDataset(new StudioClient(options.url), path, options);
  if (options.json) return printJson(dataset);
  printDataset(dataset);
}

/**
 * Uploads with a bar unless JSON is asked for.
 * @param announceFrom bytes from which on the upload is announced as an archive
 * @throws CliError `file_missing`, or what the studio answers
 */
export async function sendDataset(
  client: StudioClient,
  path: string,
  options: { name?: string; json?: boolean },
  announceFrom: number = ANNOUNCE_FROM_BYTES,
): Promise<Dataset> {
  const { files, size } = await uploadOf(path);
  const folder = basename(resolve(path));
  const name = options.name ?? slug(basename(folder, extname(folder)));
  const bar = options.json ? null : progressBar('uploading', Math.max(size, 1));
  const onProgress = (sent: number) =>
    bar?.update(sent, sent < size ? bytes(sent) : 'the studio checks the files');
  try {
    if (size < announceFrom) return await send(client, await formOf(path, name, files), onProgress);
    const archive = files ? await archiveOfFiles(files) : archiveOfFile(path, size);
    return await uploadArchive(client, name, archive, onProgress);
  } finally {
    bar?.stop();
  }
}

/** What was uploaded, for people. */
export function printDataset(dataset: Dataset): void {
  const facts = `${dataset.items} images, ${bytes(dataset.bytes)}`;
  process.stdout.write(`${green('uploaded')} ${dataset.name} as ${dataset.id} ${dim(`(${facts})`)}\n`);
  for (const warning of dataset.warnings) process.stdout.write(`  ${dim('note')} ${warning}\n`);
}

/** Deletes a dataset with all its files. */
export async function removeDataset(id: string, options: Options): Promise<void> {
  await new StudioClient(options.url).request(`/v1/datasets/${encodeURIComponent(id)}`, { method: 'DELETE' });
  if (options.json) return printJson({ removed: id });
  process.stdout.write(`${green('removed')} ${id}\n`);
}

async function uploadOf(path: string): Promise<Upload> {
  const info = await stat(path).catch((cause: unknown) => {
    throw new CliError('file_missing', `${path} cannot be read: ${String(cause)}`, { cause });
  });
  if (!info.isDirectory()) return { files: null, size: info.size };
  const files: LocalFile[] = [];
  let size = 0;
  for (const part of ['images', 'prompts']) {
    const names = await readdir(join(path, part)).catch((cause: unknown) => {
      const message = `${path} has no folder ${part}; needed are images/NNN.png and prompts/NNN.txt`;
      throw new CliError('file_missing', message, { cause });
    });
    // Whether a file belongs to a dataset is for the studio to say: all are sent, but what systems hide.
    for (const name of names.filter((file) => !file.startsWith('.')).sort()) {
      const file = join(path, part, name);
      files.push({ path: file, name: `${part}/${name}` });
      size += (await stat(file)).size;
    }
  }
  return { files, size };
}

async function formOf(path: string, name: string, files: readonly LocalFile[] | null): Promise<FormData> {
  const form = new FormData();
  form.set('name', name);
  if (!files) form.set('archive', await openAsBlob(path), basename(path));
  for (const file of files ?? [])
    form.append(dirname(file.name), await openAsBlob(file.path), basename(file.name));
  return form;
}

/** Sends a form and tells how many bytes have gone, which fetch itself does not. */
async function send(
  client: StudioClient,
  form: FormData,
  onProgress: (sent: number) => void,
): Promise<Dataset> {
  const { body, headers } = new Response(form);
  let sent = 0;
  const counter = new TransformStream<Uint8Array, Uint8Array>({
    transform: (chunk, controller) => {
      sent += chunk.byteLength;
      onProgress(sent);
      controller.enqueue(chunk);
    },
  });
  const response = await client.request('/v1/datasets', {
    method: 'POST',
    headers: { 'content-type': headers.get('content-type')! },
    body: body!.pipeThrough(counter),
    duplex: 'half',
  });
  return (await response.json()) as Dataset;
}
