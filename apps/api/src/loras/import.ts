import { basename } from 'node:path';
import type { LoraRegistry, LoraVersion, ModelEntry } from '@atelier/shared';
import type { Request } from 'express';
import { receiveFile, unsupportedType } from '../uploads/receive.ts';
import type { LoraFiles } from './lora-files.ts';

const TYPE = 'application/octet-stream';

export interface LoraImport {
  tenant: string;
  name: string;
  /** Where the body may be written; not there yet. */
  path: string;
  maxBytes: number;
  /** What the client calls the file. */
  filename: string | null;
  /** The model that the LoRA must fit. */
  entry: ModelEntry;
}

/**
 * Makes the body of a request a version of a LoRA: received whole, checked, then stored. Until the last of these
 * nothing of it is visible.
 * @throws AtelierError of the step that refused it
 */
export async function importLora(
  { loras, files }: { loras: LoraRegistry; files: LoraFiles },
  req: Request,
  { tenant, name, path, maxBytes, filename, entry }: LoraImport,
): Promise<{ version: LoraVersion; created: boolean }> {
  if (req.get('content-type') !== undefined && !req.is(TYPE)) throw unsupportedType(req, `${TYPE}, or none`);
  const received = await receiveFile(req, path, { maxBytes, what: 'a .safetensors file' });
  const { compared, ...facts } = await files.check(path, entry.files);
  return loras.add(tenant, name, {
    path,
    ...received,
    ...facts,
    base_model: compared ? entry.name : null,
    provenance: {
      source: 'import',
      filename: filename === null ? null : basename(filename),
      training_job: null,
    },
  });
}
