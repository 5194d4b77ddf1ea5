import { once } from 'node:events';
import { type WriteStream, createWriteStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { AtelierError, type FieldError } from '@atelier/shared';
import { Busboy, type BusboyHeaders } from '@fastify/busboy';
import type { Request } from 'express';
import { bodyChunks } from '../uploads/receive.ts';
import { invalid } from '../validation/validate.ts';
import { EntryTooLargeError, type UploadedEntry } from './entry.ts';
import { type DatasetLimits, maxFiles, tooManyFiles } from './limits.ts';

export interface DatasetForm {
  /** undefined when the form has no such field. */
  name: string | undefined;
  /** Path of the part `archive`; null when the form has loose files. */
  archive: string | null;
  entries: UploadedEntry[];
}

const MAX_FIELD_BYTES = 1_024;
const PARTS = 'allowed are name, and archive or images and prompts';

/**
 * Receives a multipart/form-data body (RFC 7578); files go to numbered files of `dir`, whatever they are called.
 * @throws AtelierError validation_failed with each part at fault, payload_too_large; the connection's error when the
 * client leaves early
 */
export async function receiveForm(req: Request, dir: string, limits: DatasetLimits): Promise<DatasetForm> {
  const form: DatasetForm = { name: undefined, archive: null, entries: [] };
  const problems: FieldError[] = [];
  const outputs: WriteStream[] = [];
  const writes: Promise<void>[] = [];
  const failure = Promise.withResolvers<never>();
  const parser = parserOf(req, limits);
  parser.on('error', (error) => failure.reject(malformed(error)));
  parser.on('filesLimit', () => failure.reject(tooManyFiles(`more than ${maxFiles(limits)}`, limits)));
  parser.on('fieldsLimit', () => problems.push({ field: 'name', message: 'found more than one' }));
  parser.on('field', (field, value, _fieldTruncated, truncated) => {
    if (field === 'name') form.name = truncated ? `${value}…` : value;
    else problems.push({ field: field.slice(0, 64), message: fieldProblem(field) });
  });
  parser.on('file', (field, stream, filename) => {
    const path = join(dir, String(writes.length));
    if (field === 'archive' && form.archive === null) form.archive = path;
    else if (field === 'images' || field === 'prompts')
      form.entries.push(looseFile(`${field}/${filename ?? ''}`, path));
    else {
      const message = field === 'archive' ? 'found more than one' : fieldProblem(field ?? '');
      problems.push({ field: (field ?? '').slice(0, 64), message });
      stream.resume();
      return;
    }
    const output = createWriteStream(path, { flags: 'wx' });
    const write = pipeline(stream, output);
    write.catch(failure.reject);
    outputs.push(output);
    writes.push(write);
  });

  const parsed = (async () => {
    for await (const chunk of bodyChunks(req, limits.maxBytes)) {
      const ready = parser.write(chunk) ? undefined : once(parser, 'drain');
      await Promise.race([failure.promise, ready]);
    }
    const finished = once(parser, 'finish');
    parser.end();
    await finished;
    await Promise.all(writes);
  })();
  await Promise.race([parsed, failure.promise]).catch(async (error: unknown) => {
    // What else the client sends is not read.
    req.res?.set('Connection', 'close');
    parser.destroy();
    // The folder is removed next: nothing may be on its way into it. The parser's streams need not end here.
    await Promise.all(outputs.map(closed));
    throw error;
  });

  if (form.archive !== null && form.entries.length > 0)
    problems.push({ field: 'archive', message: 'found with images or prompts; allowed is one or the other' });
  if (problems.length > 0) throw invalid(problems.slice(0, 20), 'form');
  return form;
}

function parserOf(req: Request, limits: DatasetLimits) {
  try {
    return new Busboy({
      headers: req.headers as BusboyHeaders,
      // A path in a file name is to be seen and refused, not cut off.
      preservePath: true,
      limits: { files: maxFiles(limits), fields: 2, fieldSize: MAX_FIELD_BYTES, fieldNameSize: 64 },
    });
  } catch (error) {
    throw malformed(error);
  }
}

function looseFile(name: string, path: string): UploadedEntry {
  return {
    name,
    refusal: null,
    read: async (maxBytes) => {
      const file = await open(path);
      try {
        const { size } = await file.stat();
        if (size > maxBytes) throw new EntryTooLargeError(`has more than ${maxBytes} bytes`, 0);
        return await file.readFile();
      } finally {
        await file.close();
      }
    },
  };
}

function fieldProblem(field: string): string {
  return ['archive', 'images', 'prompts'].includes(field)
    ? 'found a value, allowed are files'
    : `unknown part; ${PARTS}`;
}

function malformed(error: unknown): AtelierError {
  const message = error instanceof Error ? error.message : String(error);
  return new AtelierError('validation_failed', `body: the form cannot be read: ${message}`, { cause: error });
}

async function closed(output: WriteStream): Promise<void> {
  if (output.closed) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  output.once('close', resolve);
  output.destroy();
  await promise;
}
