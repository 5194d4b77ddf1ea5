import { Catalog } from './catalog.ts';
import type { ModelEntry } from './catalog.ts';
import { GenerationRequest, LIMITS } from './contracts/generation.ts';
import { resolveInput } from './resolve-input.ts';

const MODEL = {
  name: 'tiny',
  defaults: { width: 128, height: 64, steps: 4, guidance: 1.5, max_sequence_length: 32 },
} as ModelEntry;
const catalog = new Catalog([MODEL, { ...MODEL, name: 'other', defaults: { ...MODEL.defaults, steps: 9 } }]);
const resolve = (request: object, options = {}) =>
  resolveInput(GenerationRequest.parse({ prompt: 'a cat', ...request }), catalog, options);

test('absent fields take the defaults of the model', () => {
  expect(resolve({ seed: 7 })).toEqual({
    prompt: 'a cat',
    model: 'tiny',
    styles: [],
    width: 128,
    height: 64,
    steps: 4,
    guidance: 1.5,
    seed: 7,
    count: 1,
    format: 'png',
    priority: 'normal',
  });
  expect(resolve({ model: 'other' }).steps).toBe(9);
  expect(resolve({ steps: 50, guidance: 0, width: 512, height: 256 })).toMatchObject({
    steps: 50,
    guidance: 0,
    width: 512,
    height: 256,
  });
});

test('-1 draws a seed that other tools accept, another one each time', () => {
  const seeds = Array.from({ length: 50 }, () => resolve({ seed: -1 }).seed);
  expect(new Set(seeds).size).toBeGreaterThan(45);
  for (const seed of seeds) {
    expect(Number.isInteger(seed)).toBe(true);
    expect(seed).toBeGreaterThanOrEqual(0);
    expect(seed).toBeLessThan(2 ** 32);
  }
});

test('the seed of the last image must be exact', () => {
  expect(resolve({ seed: LIMITS.seed.max, count: 1 }).seed).toBe(LIMITS.seed.max);
  expect(() => resolve({ seed: LIMITS.seed.max, count: 2 })).toThrow(/seed must be at most/);
});

test('refuses an unknown model, naming the field', () => {
  expect(() => resolve({ model: 'sdxl' })).toThrow(
    expect.objectContaining({
      code: 'unknown_model',
      errors: [{ field: 'model', message: expect.any(String) }],
    }),
  );
});

test('styles are those that were pinned', () => {
  const styles = [{ lora: 'ink@3', weight: 0.8 }];
  expect(resolve({ styles: [{ lora: 'ink' }] }, { styles }).styles).toEqual(styles);
  expect(() => resolve({ styles: [{ lora: 'ink' }] })).toThrow(/were not pinned/);
});

test('the init image is named by its key', () => {
  const image = { file: 'data:image/png;base64,AA==', strength: 0.4 };
  expect(resolve({ image }, { imageKey: 'tenants/default/x.png' }).image).toEqual({
    key: 'tenants/default/x.png',
    strength: 0.4,
  });
  expect(() => resolve({ image })).toThrow(/was not stored/);
});
