import { createReadStream, createWriteStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import {
  AtelierError,
  type LORA_FORMATS,
  type LoraRecord,
  type LoraVersion,
  fileKey,
  formatPin,
} from '@atelier/shared';
import type { Request, Response } from 'express';
import type { ApiDeps } from '../deps.ts';
import { sendObject } from '../send-object.ts';
import type { ScratchFolder } from '../uploads/scratch.ts';
import type { LoraFiles } from './lora-files.ts';

/** A redirect is followed at once; a download that has begun goes on. */
const PRESIGNED_S = 120;
const CONTENT_TYPE = 'application/octet-stream';
/** The bytes of a version never change; those of the bare name do with the next version. */
const FOR_EVER = 'private, max-age=31536000, immutable';

type Deps = Pick<ApiDeps, 'settings' | 'store'> & { files: LoraFiles; scratch: ScratchFolder };

export interface LoraDownload {
  tenant: string;
  record: LoraRecord;
  version: LoraVersion;
  format: (typeof LORA_FORMATS)[number];
  /** Whether the request named the version. */
  pinned: boolean;
}

/** Sends the file of a version as it was imported, or written anew in the form of another program. */
export async function sendLora(
  deps: Deps,
  req: Request,
  res: Response,
  download: LoraDownload,
): Promise<void> {
  const { tenant, record, version, format, pinned } = download;
  const { settings, store } = deps;
  const key = fileKey(tenant, record.name, version.version);
  const cacheControl = pinned ? FOR_EVER : 'private, no-cache';
  if (format !== 'original') return sendConverted(deps, req, res, download, key, format);
  const filename = `${formatPin(record.name, version.version)}.safetensors`;
  // A URL is signed for one method: HEAD is answered here.
  if (store.presignGet && settings.presignedDownloads && req.method === 'GET') {
    const url = await store.presignGet(key, { seconds: PRESIGNED_S, filename });
    res.set('Cache-Control', 'no-store').redirect(307, url);
    return;
  }
  await sendObject(store, req, res, {
    key,
    etag: `"${version.sha256}"`,
    contentType: CONTENT_TYPE,
    contentDisposition: `attachment; filename="${filename}"`,
    cacheControl,
    what: `The file of ${formatPin(record.name, version.version)}`,
  });
}

async function sendConverted(
  { files, scratch, store }: Deps,
  req: Request,
  res: Response,
  { record, version }: LoraDownload,
  key: string,
  format: 'peft' | 'kohya',
): Promise<void> {
  const pin = formatPin(record.name, version.version);
  await scratch.use((source) =>
    scratch.use(async (target) => {
      const object = await store.get(key);
      if (!object) throw new AtelierError('not_found', `The file of ${pin} is gone`);
      await pipeline(object.body, createWriteStream(source));
      await files.convert(source, target, format, metadataOf(record, version));
      const { size } = await stat(target);
      res.status(200).set({
        'Content-Type': CONTENT_TYPE,
        'Content-Length': String(size),
        'Content-Disposition': `attachment; filename="${pin}.${format}.safetensors"`,
        'Cache-Control': 'private, no-cache',
      });
      if (req.method === 'HEAD') {
        res.end();
        return;
      }
      try {
        await pipeline(createReadStream(target), res);
      } catch (error) {
        // A client that leaves early is no failure.
        if (!req.destroyed && !res.destroyed) throw error;
      }
    }),
  );
}

/** What the header of an exported file says about where it comes from. */
function metadataOf(record: LoraRecord, version: LoraVersion): Record<string, string> {
  return {
    name: formatPin(record.name, version.version),
    description: record.description,
    trigger_words: record.trigger_words.join(', '),
    source_sha256: version.sha256,
  };
}
