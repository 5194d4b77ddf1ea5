import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  Dataset,
  DatasetUpload,
  GenerationJob,
  type JobRef,
  type NewApiKey,
  TrainingJob,
  type TrainingMetrics,
  newAttemptToken,
  trainingMetricsKey,
  trainingSampleKey,
} from '@atelier/shared';
import { type TestApi, expectJson } from './api.ts';
import { PNG, pair } from './datasets.ts';
import { startInstantWorker } from './instant-worker.ts';
import { bearer } from './keys.ts';
import { writeSmallLora } from './lora-files.ts';
import { zip } from './zip.ts';

/** Leads nowhere: that a delivery is there is enough. */
const HOOK = { url: 'https://hooks.invalid/', events: ['started', 'succeeded'] };

/** One object of every sort, as the parameters of the paths that lead to it. */
export interface TenantObjects {
  generations: { id: string; index: string; delivery: string };
  loras: { name: string; version: string };
  datasets: { id: string };
  uploads: { id: string };
  trainings: { id: string; step: string; index: string; delivery: string };
}

/** What the same paths hold for no tenant. */
export const UNKNOWN: TenantObjects = {
  generations: { id: `gen_${'0'.repeat(32)}`, index: '0', delivery: `gen_${'0'.repeat(32)}_succeeded` },
  loras: { name: 'nobodys', version: '1' },
  datasets: { id: `dst_${'0'.repeat(32)}` },
  uploads: { id: `upl_${'0'.repeat(32)}` },
  trainings: {
    id: `trn_${'0'.repeat(32)}`,
    step: '1',
    index: '0',
    delivery: `trn_${'0'.repeat(32)}_started`,
  },
};

/**
 * The path with the parameters of the object that it is about.
 * @throws Error for a parameter that no object has: a new sort of object belongs into TenantObjects
 */
export function pathOf(template: string, objects: TenantObjects): string {
  const collection = template.startsWith('/v1/datasets/uploads/') ? 'uploads' : template.split('/')[2]!;
  const values = (objects as unknown as Record<string, Record<string, string> | undefined>)[collection] ?? {};
  return template.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const value = values[name];
    if (value === undefined) throw new Error(`${template}: add {${name}} to TenantObjects in test/support`);
    return value;
  });
}

/** Makes one object of every sort through the API with a key; of a training what a trainer would have stored. */
export async function makeTenantObjects(api: TestApi, { key, tenant }: NewApiKey): Promise<TenantObjects> {
  const dir = await mkdtemp(join(tmpdir(), 'atelier-tenant-'));
  const worker = startInstantWorker(api);
  const send = (method: string, path: string, body: Uint8Array | object, more: Record<string, string> = {}) =>
    fetch(api.url + path, {
      method,
      headers: { 'Content-Type': 'application/json', ...bearer(key), ...more },
      body: body instanceof Uint8Array ? new Uint8Array(body) : JSON.stringify(body),
    });
  try {
    const generation = await expectJson(
      await send('POST', '/v1/generations', { prompt: 'a', webhook: HOOK }, { Prefer: 'wait=30' }),
      200,
      GenerationJob,
    );
    const lora = await readFile(await writeSmallLora(join(dir, 'ink.safetensors')));
    const type = { 'Content-Type': 'application/octet-stream' };
    expect((await send('PUT', '/v1/loras/secret-ink', lora, type)).status).toBe(201);
    const archive = zip(pair('001'));
    const dataset = await expectJson(
      await send('POST', '/v1/datasets?name=ink', archive, { 'Content-Type': 'application/zip' }),
      201,
      Dataset,
    );
    const upload = await expectJson(
      await send('POST', '/v1/datasets/uploads', { name: 'ink', size: archive.length }),
      201,
      DatasetUpload,
    );
    expect((await fetch(upload.url, { ...upload, body: new Uint8Array(archive) })).status).toBe(200);
    const training = await expectJson(
      await send('POST', '/v1/trainings', { name: 'ink', dataset: dataset.id, webhook: HOOK }),
      202,
      TrainingJob,
    );
    await storeSample(api, { tenant, id: training.id });
    await api.jobs.start({ tenant, id: training.id, token: newAttemptToken() }, 'trainer');
    return {
      generations: { id: generation.id, index: '0', delivery: `${generation.id}_succeeded` },
      loras: { name: 'secret-ink', version: '1' },
      datasets: { id: dataset.id },
      uploads: { id: upload.id },
      trainings: { id: training.id, step: '1', index: '0', delivery: `${training.id}_started` },
    };
  } finally {
    await worker.close();
    await rm(dir, { recursive: true });
  }
}

async function storeSample(api: TestApi, training: JobRef): Promise<void> {
  const sample = { epoch: 1, step: 1, index: 0, prompt: 'a', seed: 1, width: 24, height: 16, sha256: 'x' };
  const metrics: TrainingMetrics = {
    steps: [],
    validation: [],
    checkpoints: [],
    samples: [sample],
    skipped: [],
  };
  const json = Buffer.from(JSON.stringify(metrics));
  await api.store.put(trainingMetricsKey(training), json, { contentType: 'application/json' });
  await api.store.put(trainingSampleKey(training, 1, 0), PNG, { contentType: 'image/png' });
}
