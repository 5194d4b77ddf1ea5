import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Catalog, loadCatalog } from './catalog.ts';
import { loadConfig } from './config.ts';

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'atelier-catalog-'));
  await mkdir(join(dir, 'm', 'text'), { recursive: true });
  for (const file of ['t.safetensors', 'ae.safetensors']) await writeFile(join(dir, 'm', file), '');
});
afterEach(() => rm(dir, { recursive: true }));

const FILES = {
  transformer: 't.safetensors',
  text_encoder: 'text',
  text_encoder_2: 'text',
  tokenizer: 'text',
  tokenizer_2: 'text',
  scheduler: 'text',
};
const ENTRY = { name: 'm', title: 'M', family: 'flux', folder: 'm', license: 'none', files: FILES };
const DEFAULTS = { width: 1024, height: 768, steps: 20, guidance: 3.5, max_sequence_length: 512 };

async function load(models: unknown, index?: object): Promise<Catalog> {
  const path = join(dir, 'catalog.json');
  await writeFile(path, typeof models === 'string' ? models : JSON.stringify({ models }));
  if (index) await writeFile(join(dir, 'm', 'model_index.json'), JSON.stringify(index));
  return loadCatalog({ ATELIER_CATALOG: path, ATELIER_MODELS_DIR: dir });
}

test('the bundled catalog has mini, with the defaults of its folder and files that are there', async () => {
  const catalog = await loadCatalog(loadConfig({}, join(import.meta.dirname, '../../..')));
  expect(catalog.default.name).toBe('mini');
  expect(catalog.get('mini').defaults).toMatchObject({ width: expect.any(Number), steps: 20 });
  expect(catalog.get('mini').files.transformer).toMatch(/models\/mini\/transformer\.safetensors$/);
});

test('what the catalog says wins over the folder, and default file names fill the rest', async () => {
  const catalog = await load([{ ...ENTRY, defaults: { steps: 8 } }], {
    _class_name: 'FluxPipeline',
    default_size: 512,
    default_steps: 30,
    default_guidance: 2,
    max_sequence_length: 256,
  });
  expect(catalog.default.defaults).toEqual({
    width: 512,
    height: 512,
    steps: 8,
    guidance: 2,
    max_sequence_length: 256,
  });
  expect(catalog.default.files).toMatchObject({
    transformer: join(dir, 'm', 't.safetensors'),
    vae: join(dir, 'm', 'ae.safetensors'),
    textEncoder2: join(dir, 'm', 'text'),
  });
});

test('complete defaults in the catalog need no model_index.json', async () => {
  expect((await load([{ ...ENTRY, defaults: DEFAULTS }])).default.defaults).toEqual(DEFAULTS);
});

test('a process without weights can name models that one with weights must find', async () => {
  const away = { ...ENTRY, name: 'away', folder: 'elsewhere', defaults: DEFAULTS, quantize: 'fp8' };
  await expect(load([away])).rejects.toMatchObject({ code: 'model_load_failed' });
  const config = { ATELIER_CATALOG: join(dir, 'catalog.json'), ATELIER_MODELS_DIR: dir };
  const catalog = await loadCatalog(config, { files: 'unchecked' });
  expect(catalog.get('away')).toMatchObject({ quantize: 'fp8', defaults: DEFAULTS });
});

test('an unknown model lists the names', async () => {
  const catalog = await load([{ ...ENTRY, defaults: DEFAULTS }]);
  expect(() => catalog.get('sdxl')).toThrow('The model "sdxl" is not in the catalog: m');
});

test.each([
  ['text that is not JSON', '{', /catalog\.json cannot be read/],
  ['an unknown field', [{ ...ENTRY, colour: 'red' }], /models\.0: .*colour/],
  ['the same name twice', [ENTRY, ENTRY], /m is there twice/],
  ['no model', [], /models/],
  [
    'a missing file',
    [{ ...ENTRY, defaults: DEFAULTS, files: { ...FILES, vae: 'gone.safetensors' } }],
    /needs .*gone\.safetensors/,
  ],
  ['no defaults', [ENTRY], /model_index\.json cannot be read/],
  ['a size that is no multiple of 16', [{ ...ENTRY, defaults: { ...DEFAULTS, width: 100 } }], /width/],
])('%s is a clear error', async (_, models, message) => {
  await expect(load(models)).rejects.toMatchObject({
    code: 'model_load_failed',
    message: expect.stringMatching(message),
  });
});
