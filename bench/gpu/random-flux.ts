import { copyFile, cp, mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { encodeFloat32 } from '../../packages/flux/src/checkpoint/dtypes.ts';
import type { ModelFiles } from '../../packages/flux/src/checkpoint/model-files.ts';
import { type TensorEntry, writeSafetensors } from '../../packages/flux/src/checkpoint/safetensors.ts';
import type { ClipSpec, T5Spec, TransformerSpec, VaeSpec } from '../../packages/flux/src/checkpoint/spec.ts';
import { clipShapes, t5Shapes } from '../../packages/flux/src/checkpoint/specs/text.ts';
import { transformerShapes } from '../../packages/flux/src/checkpoint/specs/transformer.ts';
import { vaeShapes } from '../../packages/flux/src/checkpoint/specs/vae.ts';
import { TorchGenerator } from '../../packages/flux/src/sampling/random.ts';

/*
 * Checkpoints of the shapes of FLUX.1-dev with random weights, for measuring time and memory: neither depends on the
 * values, and the licensed weights are not needed.
 */

export const FLUX_DEV: TransformerSpec = {
  hiddenSize: 3072,
  numHeads: 24,
  headDim: 128,
  doubleBlocks: 19,
  singleBlocks: 38,
  mlpSize: 12_288,
  inChannels: 64,
  outChannels: 64,
  jointDim: 4096,
  pooledDim: 768,
  guidanceEmbeds: true,
  axesDims: [16, 56, 56],
  theta: 10_000,
  timestepDim: 256,
  hasQkvBias: true,
};

const T5_XXL: T5Spec = {
  vocabSize: 32_128,
  modelDim: 4096,
  numHeads: 64,
  headDim: 64,
  layers: 24,
  mlpSize: 10_240,
  relativeBuckets: 32,
  relativeMaxDistance: 128,
  layerNormEps: 1e-6,
  padTokenId: 0,
};

export const CLIP_L: ClipSpec = {
  vocabSize: 49_408,
  hiddenSize: 768,
  numHeads: 12,
  headDim: 64,
  layers: 12,
  mlpSize: 3072,
  maxPositions: 77,
  activation: 'quick_gelu',
  layerNormEps: 1e-5,
  eosTokenId: 2,
  pooling: 'highest_id',
};

const FLUX_VAE: VaeSpec = {
  blockOutChannels: [128, 256, 512, 512],
  layersPerBlock: 2,
  latentChannels: 16,
  inChannels: 3,
  outChannels: 3,
  normGroups: 32,
  midAttention: true,
  hasQuantConv: false,
  hasPostQuantConv: false,
  scalingFactor: 0.3611,
  shiftFactor: 0.1159,
  scaleFactor: 8,
};

const MINI = resolve(import.meta.dirname, '../../models/mini');
/** Random values that every large tensor repeats; not a multiple of a row, so that no two rows are equal. */
const BLOCK_VALUES = 8 * 1024 * 1024 + 41;
const PIECE_BYTES = 16 * 1024 * 1024;

/** Writes the model's files into `folder`. @param blocks fewer blocks than FLUX.1-dev's, to try a script out */
export async function writeRandomFlux(
  folder: string,
  options: { t5?: 'F8_E4M3' | 'BF16'; blocks?: readonly [double: number, single: number] } = {},
): Promise<ModelFiles> {
  const { t5 = 'BF16', blocks } = options;
  const write = writer(folder);
  const files: ModelFiles = {
    transformer: await writeRandomTransformer(folder, blocks),
    vae: await write('ae.safetensors', vaeShapes(FLUX_VAE), 'BF16'),
    textEncoder: join(folder, 'text_encoder'),
    textEncoder2: join(folder, 'text_encoder_2'),
    tokenizer: join(folder, 'tokenizer'),
    tokenizer2: join(folder, 'tokenizer_2'),
    scheduler: join(folder, 'scheduler'),
  };
  await write('text_encoder/model.safetensors', clipShapes(CLIP_L), 'BF16');
  await write('text_encoder_2/model.safetensors', t5Shapes(T5_XXL), t5);
  await writeFile(join(folder, 'text_encoder/config.json'), JSON.stringify(clipConfig()));
  await writeFile(join(folder, 'text_encoder_2/config.json'), JSON.stringify(t5Config()));
  // Their vocabularies are smaller than the encoders', which ids do not mind.
  for (const name of ['tokenizer', 'tokenizer_2', 'scheduler'])
    await cp(join(MINI, name), join(folder, name), { recursive: true });
  await copyFile(join(MINI, 'model_index.json'), join(folder, 'model_index.json'));
  return files;
}

/** The transformer alone, in fp8. @returns its file */
export function writeRandomTransformer(
  folder: string,
  blocks: readonly [double: number, single: number] = [FLUX_DEV.doubleBlocks, FLUX_DEV.singleBlocks],
): Promise<string> {
  const spec = { ...FLUX_DEV, doubleBlocks: blocks[0], singleBlocks: blocks[1] };
  const transformer = [...transformerShapes(spec)].flatMap(([name, shape]): [string, readonly number[]][] => {
    // diffusers stores both halves in one tensor.
    if (name.startsWith('norm_out.linear_shift')) return [];
    if (!name.startsWith('norm_out.linear_scale')) return [[name, shape]];
    return [[name.replace('linear_scale', 'linear'), [shape[0]! * 2, ...shape.slice(1)]]];
  });
  return writer(folder)('transformer.safetensors', transformer, 'F8_E4M3');
}

type Write = (
  file: string,
  shapes: Iterable<[string, readonly number[]]>,
  matrices: 'F8_E4M3' | 'BF16',
) => Promise<string>;

/** Writes files of random values in a folder. */
function writer(folder: string): Write {
  const values = new TorchGenerator(0).randn(BLOCK_VALUES).map((value) => value * 0.03);
  const random = {
    F8_E4M3: encodeFloat32('F8_E4M3', values),
    BF16: encodeFloat32('BF16', values),
  };
  return async (file, shapes, matrices) => {
    const path = join(folder, file);
    await mkdir(join(path, '..'), { recursive: true });
    await writeSafetensors(path, entries(shapes, matrices, random));
    return path;
  };
}

function entries(
  shapes: Iterable<[string, readonly number[]]>,
  matrices: 'F8_E4M3' | 'BF16',
  random: Record<'F8_E4M3' | 'BF16', Uint8Array>,
): TensorEntry[] {
  return [...shapes].map(([name, shape]) => {
    const count = shape.reduce((product, size) => product * size, 1);
    if (shape.length === 1) {
      const value = name.endsWith('.weight') ? 1 : 0;
      return { name, shape, dtype: 'BF16', data: encodeFloat32('BF16', new Float32Array(count).fill(value)) };
    }
    const dtype = /^(single_)?transformer_blocks|^encoder\.block/.test(name) ? matrices : 'BF16';
    return { name, shape, dtype, data: repeated(random[dtype], count * (dtype === 'BF16' ? 2 : 1)) };
  });
}

async function* repeated(block: Uint8Array, bytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes;) {
    const from = at % block.length;
    const end = Math.min(block.length, from + PIECE_BYTES, from + bytes - at);
    yield block.subarray(from, end);
    at += end - from;
  }
}

function clipConfig(): object {
  return {
    model_type: 'clip_text_model',
    vocab_size: CLIP_L.vocabSize,
    hidden_size: CLIP_L.hiddenSize,
    intermediate_size: CLIP_L.mlpSize,
    num_hidden_layers: CLIP_L.layers,
    num_attention_heads: CLIP_L.numHeads,
    max_position_embeddings: CLIP_L.maxPositions,
    hidden_act: CLIP_L.activation,
    layer_norm_eps: CLIP_L.layerNormEps,
    eos_token_id: CLIP_L.eosTokenId,
  };
}

function t5Config(): object {
  return {
    model_type: 't5',
    feed_forward_proj: 'gated-gelu',
    dense_act_fn: 'gelu_new',
    vocab_size: T5_XXL.vocabSize,
    d_model: T5_XXL.modelDim,
    d_kv: T5_XXL.headDim,
    d_ff: T5_XXL.mlpSize,
    num_layers: T5_XXL.layers,
    num_heads: T5_XXL.numHeads,
    relative_attention_num_buckets: T5_XXL.relativeBuckets,
    relative_attention_max_distance: T5_XXL.relativeMaxDistance,
    layer_norm_epsilon: T5_XXL.layerNormEps,
    pad_token_id: T5_XXL.padTokenId,
  };
}
