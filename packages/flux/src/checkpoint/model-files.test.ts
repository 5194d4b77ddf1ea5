import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { openModel, type ModelFiles } from './model-files.ts';
import { writeSafetensors } from './safetensors.ts';
import { bflTransformer, FIXTURES, rejection, temporaryFolder } from './testing.ts';

const folder = temporaryFolder();
const MINI = join(import.meta.dirname, '../../../../models/mini');

/** The files of a fixture, from its model.json. */
async function fixtureFiles(name: string): Promise<ModelFiles> {
  const path = join(FIXTURES, name);
  const { files } = JSON.parse(await readFile(join(path, 'model.json'), 'utf8')) as {
    files: Record<string, string>;
  };
  const at = (key: string) => resolve(path, files[key]!);
  return {
    transformer: at('transformer'),
    vae: at('vae'),
    textEncoder: at('text_encoder'),
    textEncoder2: at('text_encoder_2'),
    tokenizer: at('tokenizer'),
    tokenizer2: at('tokenizer_2'),
    scheduler: at('scheduler'),
  };
}

test('the bundled model: single files of Black Forest Labs, fp8, heads of 64', async () => {
  const model = await openModel({
    transformer: join(MINI, 'transformer.safetensors'),
    vae: join(MINI, 'ae.safetensors'),
    textEncoder: join(MINI, 'text_encoder'),
    textEncoder2: join(MINI, 'text_encoder_2'),
    tokenizer: join(MINI, 'tokenizer'),
    tokenizer2: join(MINI, 'tokenizer_2'),
    scheduler: join(MINI, 'scheduler'),
  });
  const config = JSON.parse(await readFile(join(MINI, 'transformer_config.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  expect(model.transformer.spec).toMatchObject({
    doubleBlocks: config['num_layers'],
    singleBlocks: config['num_single_layers'],
    numHeads: config['num_attention_heads'],
    headDim: config['attention_head_dim'],
    axesDims: config['axes_dims_rope'],
    guidanceEmbeds: true,
    hasQkvBias: true,
  });
  expect(model.transformer.weights.get('transformer_blocks.0.attn.to_q.weight').dtype).toBe('F8_E4M3');
  expect(model.vae.spec).toMatchObject({ scaleFactor: 8, latentChannels: 16 });
  expect(model.scheduler.useDynamicShifting).toBe(true);
});

test('tiny-dev: Black Forest Labs files, guidance, the legacy end token of CLIP', async () => {
  const model = await openModel(await fixtureFiles('tiny-dev'));
  expect(model.transformer.spec).toEqual({
    hiddenSize: 60,
    numHeads: 3,
    headDim: 20,
    doubleBlocks: 2,
    singleBlocks: 3,
    mlpSize: 240,
    inChannels: 16,
    outChannels: 16,
    jointDim: 40,
    pooledDim: 24,
    guidanceEmbeds: true,
    axesDims: [4, 8, 8],
    theta: 10000,
    timestepDim: 256,
    hasQkvBias: true,
  });
  expect(model.vae.spec).toEqual({
    blockOutChannels: [8, 16, 24],
    layersPerBlock: 1,
    latentChannels: 4,
    inChannels: 3,
    outChannels: 3,
    normGroups: 4,
    scalingFactor: 0.73,
    shiftFactor: 0.21,
    scaleFactor: 4,
    midAttention: true,
    hasQuantConv: false,
    hasPostQuantConv: false,
  });
  expect(model.clip.spec).toEqual({
    vocabSize: 4096,
    hiddenSize: 24,
    numHeads: 3,
    headDim: 8,
    layers: 2,
    mlpSize: 72,
    maxPositions: 77,
    activation: 'quick_gelu',
    layerNormEps: 1e-5,
    eosTokenId: 2,
    pooling: 'highest_id',
  });
  expect(model.t5.spec).toEqual({
    vocabSize: 4096,
    modelDim: 40,
    numHeads: 3,
    headDim: 12,
    layers: 3,
    mlpSize: 56,
    relativeBuckets: 32,
    relativeMaxDistance: 128,
    layerNormEps: 1e-6,
    padTokenId: 0,
  });
});

test('tiny-schnell: sharded folders of diffusers, no guidance', async () => {
  const model = await openModel(await fixtureFiles('tiny-schnell'));
  expect(model.transformer.spec).toMatchObject({ headDim: 24, axesDims: [4, 10, 10], guidanceEmbeds: false });
  expect(model.vae.spec).toMatchObject({
    blockOutChannels: [12, 18],
    layersPerBlock: 2,
    normGroups: 6,
    scaleFactor: 2,
  });
  expect(model.clip.spec).toMatchObject({ activation: 'gelu', pooling: 'first_eos', layers: 3 });
  expect(model.t5.spec).toMatchObject({ relativeBuckets: 12, relativeMaxDistance: 20, headDim: 10 });
  expect(model.scheduler).toMatchObject({ useDynamicShifting: false, shift: 1 });
});

test.each(['bf16', 'fp16', 'fp8', 'fp8_scaled'])(
  'the transformer as %s has the same sizes',
  async (variant) => {
    const files = await fixtureFiles('tiny-dev');
    const transformer = join(FIXTURES, 'tiny-dev/variants', `${variant}.safetensors`);
    const model = await openModel({ ...files, transformer });
    expect(model.transformer.spec).toMatchObject({
      hiddenSize: 60,
      doubleBlocks: 1,
      singleBlocks: 1,
      mlpSize: 240,
    });
  },
);

describe('parts that do not fit each other', () => {
  test.each([
    ['textEncoder', 'takes pooled text of width 24; those of CLIP have 20'],
    ['textEncoder2', 'takes text states of width 40; those of T5 have 32'],
    ['vae', 'takes packed latents of width 16; those of the autoencoder have 8'],
  ] as const)('a foreign %s', async (part, message) => {
    const [dev, schnell] = [await fixtureFiles('tiny-dev'), await fixtureFiles('tiny-schnell')];
    const error = await rejection(openModel({ ...dev, [part]: schnell[part] }));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain(message);
  });

  test('a transformer that takes a picture beside the latents', async () => {
    const files = await fixtureFiles('tiny-schnell');
    const path = folder.file('fill');
    await mkdir(path);
    const fill = bflTransformer(32).map((tensor) => {
      const shapes: Record<string, number[]> = {
        'img_in.weight': [32, 12],
        'txt_in.weight': [32, 32],
        'vector_in.in_layer.weight': [32, 20],
        'final_layer.linear.weight': [8, 32],
        'final_layer.linear.bias': [8],
      };
      const shape = shapes[tensor.name];
      if (!shape) return tensor;
      const bytes = shape.reduce((product, size) => product * size, tensor.dtype === 'BF16' ? 2 : 1);
      return { ...tensor, shape, data: new Uint8Array(bytes) };
    });
    await writeSafetensors(join(path, 'transformer.safetensors'), fill);
    await writeFile(join(path, 'transformer_config.json'), '{"axes_dims_rope":[8,12,12]}');
    const error = await rejection(
      openModel({ ...files, transformer: join(path, 'transformer.safetensors') }),
    );
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain('takes input tokens of width 12; those of a text-to-image model have 8');
  });
});

test('an absent part is missing, by its path', async () => {
  const files = await fixtureFiles('tiny-dev');
  const error = await rejection(openModel({ ...files, vae: folder.file('absent.safetensors') }));
  expect(error.code).toBe('checkpoint_missing');
  expect(error.message).toContain(folder.file('absent.safetensors'));
});
