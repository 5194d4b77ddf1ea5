import {
  AtelierError,
  LORA_NAME,
  LoraFileQuery,
  LoraImportQuery,
  type LoraList,
  LoraListQuery,
  LoraName,
  LoraPatch,
  type LoraRecord,
  type LoraVersion,
  type LoraVersionView,
  latestOf,
  loraVersionView,
  loraView,
} from '@atelier/shared';
import type { IRouter, Request } from 'express';
import { tenantOf } from '../auth.ts';
import type { ApiDeps } from '../deps.ts';
import { jsonBody } from '../json-body.ts';
import { importLora } from '../loras/import.ts';
import { LoraFiles } from '../loras/lora-files.ts';
import { sendLora } from '../loras/send-lora.ts';
import { resource } from '../resource.ts';
import type { ScratchFolder } from '../uploads/scratch.ts';
import { invalid, validate } from '../validation/validate.ts';

/** The registry of LoRAs: import, look at, describe, download, delete. */
export function loraRoutes(router: IRouter, deps: ApiDeps, scratch: ScratchFolder): void {
  const { catalog, loras, settings } = deps;
  const files = new LoraFiles();

  const read = async (req: Request): Promise<LoraRecord> => {
    const name = String(req.params['name']);
    const record = LORA_NAME.test(name) ? await loras.get(tenantOf(req), name) : null;
    if (!record)
      throw new AtelierError('not_found', `No LoRA has the name ${JSON.stringify(name.slice(0, 64))}`);
    return record;
  };

  resource(router, '/v1/loras', {
    get: async (req, res) => {
      const page = await loras.list(tenantOf(req), validate(LoraListQuery, req.query, 'query'));
      res.json({ data: page.records.map(loraView), next_cursor: page.cursor } satisfies LoraList);
    },
  });

  resource(router, '/v1/loras/:name', {
    get: async (req, res) => void res.json(loraView(await read(req))),

    put: async (req, res) => {
      const name = LoraName.safeParse(req.params['name']);
      if (!name.success) throw invalid([{ field: 'name', message: name.error.issues[0]!.message }], 'path');
      const { filename = null, model } = validate(LoraImportQuery, req.query, 'query');
      const entry = model === undefined ? catalog.default : catalog.get(model);
      const limits = { maxBytes: settings.maxLoraBytes };
      const { version, created } = await scratch.use((path) =>
        importLora({ loras, files }, req, {
          tenant: tenantOf(req),
          name: name.data,
          path,
          filename,
          entry,
          ...limits,
        }),
      );
      res.set('Location', `/v1/loras/${name.data}/versions/${version.version}`);
      res.status(created ? 201 : 200).json(loraVersionView(name.data, version) satisfies LoraVersionView);
    },

    patch: [
      ...jsonBody(settings.maxBodyBytes),
      async (req, res) => {
        const patch = validate(LoraPatch, req.body);
        const { name } = await read(req);
        res.json(loraView(await loras.update(tenantOf(req), name, patch)));
      },
    ],

    delete: async (req, res) => {
      const { name } = await read(req);
      await loras.delete(tenantOf(req), name);
      res.status(204).end();
    },
  });

  resource(router, '/v1/loras/:name/versions/:version', {
    get: async (req, res) => {
      const record = await read(req);
      res.json(loraVersionView(record.name, findVersion(record, String(req.params['version']))));
    },
  });

  resource(router, '/v1/loras/:name/file', {
    get: async (req, res) => {
      const { version: number, format } = validate(LoraFileQuery, req.query, 'query');
      const record = await read(req);
      const version = number === undefined ? latestOf(record) : findVersion(record, String(number));
      await sendLora({ ...deps, files, scratch }, req, res, {
        tenant: tenantOf(req),
        record,
        version,
        format,
        pinned: number !== undefined,
      });
    },
  });
}

function findVersion({ name, versions }: LoraRecord, text: string): LoraVersion {
  const version = versions.find((known) => String(known.version) === text);
  if (version) return version;
  const numbers = versions.map((known) => known.version);
  throw new AtelierError(
    'not_found',
    `${name} has the versions ${numbers.slice(-10).join(', ')}; asked for ${JSON.stringify(text.slice(0, 20))}`,
  );
}
