import {
  AtelierError,
  type Dataset,
  type DatasetList,
  DatasetListQuery,
  DatasetStore,
  type DatasetSummary,
  deleteDataset,
} from '@atelier/shared';
import type { IRouter, Request } from 'express';
import { tenantOf } from '../auth.ts';
import { sweepDatasets } from '../datasets/sweep.ts';
import { uploadDataset } from '../datasets/upload.ts';
import type { ApiDeps } from '../deps.ts';
import { resource } from '../resource.ts';
import type { ScratchFolder } from '../uploads/scratch.ts';
import { validate } from '../validation/validate.ts';

/** Pictures and prompts to train on: upload, look at, delete. */
export function datasetRoutes(router: IRouter, deps: ApiDeps, scratch: ScratchFolder): void {
  const { jobs, redis, settings, store } = deps;
  const datasets = new DatasetStore(store);
  sweepDatasets(deps);

  const read = async (req: Request): Promise<Dataset> => {
    const id = String(req.params['id']);
    const dataset = await datasets.get(tenantOf(req), id);
    if (dataset) return dataset;
    throw new AtelierError('not_found', `No dataset has the id ${JSON.stringify(id.slice(0, 64))}`);
  };

  resource(router, '/v1/datasets', {
    get: async (req, res) => {
      const page = await datasets.list(tenantOf(req), validate(DatasetListQuery, req.query, 'query'));
      res.json({ data: page.datasets.map(summaryOf), next_cursor: page.cursor } satisfies DatasetList);
    },

    post: async (req, res) => {
      const dataset = await scratch.useFolder((dir) =>
        uploadDataset(datasets, req, { tenant: tenantOf(req), limits: settings.dataset, dir }),
      );
      res.set('Location', `/v1/datasets/${dataset.id}`).status(201).json(dataset);
    },
  });

  resource(router, '/v1/datasets/:id', {
    get: async (req, res) => void res.json(await read(req)),

    delete: async (req, res) => {
      await deleteDataset({ datasets, jobs, redis }, tenantOf(req), String(req.params['id']));
      res.status(204).end();
    },
  });
}

function summaryOf({ id, name, items, bytes, created_at }: Dataset): DatasetSummary {
  return { id, name, items, bytes, created_at };
}
