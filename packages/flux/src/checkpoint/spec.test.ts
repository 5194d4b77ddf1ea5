import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { FluxError } from '../errors.ts';
import { Config } from './config.ts';
import type { MappedWeights } from './layouts/layout.ts';
import type { ModelPart } from './model-parts.ts';
import { writeSafetensors, type TensorEntry } from './safetensors.ts';
import { clipSpec, readScheduler, t5Spec, transformerSpec, vaeSpec } from './spec.ts';
import { bflTransformer, entry, FIXTURES, rejection, temporaryFolder, writeEdited } from './testing.ts';
import { openWeights } from './weights.ts';

const folder = temporaryFolder();
const DEV = join(FIXTURES, 'tiny-dev');
const MINI_AE = join(import.meta.dirname, '../../../../models/mini/ae.safetensors');
const NO_CONFIG = new Config('/model/config.json', undefined);
const DEV_AXES = { axes_dims_rope: [4, 8, 8] };

const DERIVE = { transformer: transformerSpec, vae: vaeSpec, clip: clipSpec, t5: t5Spec };
const SOURCE: Record<ModelPart, string> = {
  transformer: join(DEV, 'transformer.safetensors'),
  vae: join(DEV, 'ae.safetensors'),
  clip: join(DEV, 'text_encoder/model.safetensors'),
  t5: join(DEV, 'text_encoder_2/model.safetensors'),
};
const CONFIG: Record<ModelPart, Record<string, unknown>> = {
  transformer: DEV_AXES,
  vae: { norm_num_groups: 4, scaling_factor: 0.73 },
  clip: { num_attention_heads: 3, hidden_act: 'gelu', layer_norm_eps: 1e-5, eos_token_id: 5 },
  t5: { feed_forward_proj: 'gated-gelu', layer_norm_epsilon: 1e-6 },
};

/** The spec of a part of tiny-dev, its config overridden and its tensors edited. */
async function derive<P extends ModelPart>(
  part: P,
  config: Record<string, unknown> = {},
  edit: (entries: Map<string, TensorEntry>) => unknown = () => {},
): Promise<ReturnType<(typeof DERIVE)[P]>> {
  const path = folder.file(`${part}.safetensors`);
  await writeEdited(SOURCE[part], path, (entries) => void edit(entries));
  const from = DERIVE[part] as (weights: MappedWeights, config: Config) => ReturnType<(typeof DERIVE)[P]>;
  return from(
    await openWeights(path, part),
    new Config('/model/config.json', { ...CONFIG[part], ...config }),
  );
}

const refusal = (...args: Parameters<typeof derive>): Promise<FluxError> => rejection(derive(...args));

const drop =
  (...names: string[]) =>
  (entries: Map<string, TensorEntry>) => {
    for (const name of names) {
      if (!entries.delete(name)) throw new Error(`${name} is not there to be dropped`);
    }
  };

const put =
  (...tensors: TensorEntry[]) =>
  (entries: Map<string, TensorEntry>) => {
    for (const tensor of tensors) entries.set(tensor.name, tensor);
  };

describe('transformer', () => {
  test('axes of heads of 128 are those of FLUX.1 without a config; a config goes before', async () => {
    const path = folder.file('flux.safetensors');
    await writeSafetensors(path, bflTransformer(128));
    const weights = await openWeights(path, 'transformer');
    expect(transformerSpec(weights, NO_CONFIG)).toEqual({
      hiddenSize: 128,
      numHeads: 1,
      headDim: 128,
      doubleBlocks: 1,
      singleBlocks: 1,
      mlpSize: 256,
      inChannels: 64,
      outChannels: 64,
      jointDim: 8,
      pooledDim: 4,
      guidanceEmbeds: false,
      axesDims: [16, 56, 56],
      theta: 10000,
      timestepDim: 16,
      hasQkvBias: true,
    });
    const config = new Config('/model/config.json', { axes_dims_rope: [32, 48, 48] });
    expect(transformerSpec(weights, config).axesDims).toEqual([32, 48, 48]);
  });

  test('other heads need a config', async () => {
    const weights = await openWeights(SOURCE.transformer, 'transformer');
    const error = await rejection(Promise.resolve().then(() => transformerSpec(weights, NO_CONFIG)));
    expect(error.code).toBe('checkpoint_missing');
    expect(error.message).toBe('/model/config.json: is needed for axes_dims_rope, and absent');
  });

  test.each([[[4, 8]], [[4, 8, 10]], [[5, 7, 8]], [[4, 4, 4, 8]]])('axes %p are refused', async (axes) => {
    const error = await refusal('transformer', { axes_dims_rope: axes });
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toContain('expected 3 even numbers whose sum is the head width 20');
  });

  test('a tensor of another shape is named with both shapes', async () => {
    const error = await refusal(
      'transformer',
      {},
      put(entry('double_blocks.1.txt_mlp.2.weight', 'F32', [60, 239])),
    );
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toContain(
      `tensor 'double_blocks.1.txt_mlp.2.weight', as transformer_blocks.1.ff_context.net.2.weight, is [60, 239]; expected [60, 240]`,
    );
  });

  test('a width that heads cannot share is refused', async () => {
    const error = await refusal(
      'transformer',
      {},
      put(entry('double_blocks.0.img_attn.norm.query_norm.scale', 'F32', [16])),
    );
    expect(error.message).toContain('has a width of 60, which is no multiple of its head width 16');
  });

  test('missing tensors are counted and named as the file would name them', async () => {
    const gone = Array.from({ length: 3 }, (_, i) => `single_blocks.${i}.linear1.bias`);
    const error = await refusal(
      'transformer',
      {},
      drop(...gone, 'img_in.bias', 'txt_in.bias', 'txt_in.weight'),
    );
    expect(error.code).toBe('checkpoint_missing');
    expect(error.message).toContain(`has no tensor 'txt_in.weight'`);
    const counted = await refusal(
      'transformer',
      {},
      drop(...gone, 'img_in.bias', 'txt_in.bias', 'final_layer.linear.bias'),
    );
    expect(counted.message).toContain(
      'lacks 6 tensors of the Black Forest Labs layout: img_in.bias, txt_in.bias,',
    );
    expect(counted.message).toContain('and 1 more');
    expect(counted.details['count']).toBe(6);
  });

  test('a gap in the blocks is missing blocks', async () => {
    const error = await refusal('transformer', {}, (entries) => {
      for (const name of entries.keys()) if (name.startsWith('single_blocks.1.')) entries.delete(name);
    });
    expect(error.code).toBe('checkpoint_missing');
    expect(error.message).toContain('single_blocks.1.');
    expect(error.message).toContain('unknown tensors (single_blocks.2.');
  });

  test('unknown tensors are counted and named', async () => {
    const error = await refusal('transformer', {}, put(entry('img_in.lora_A.weight', 'F32', [4, 16])));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain('has 1 unknown tensors (img_in.lora_A.weight)');
  });

  test('q, k, v biases are absent from all double blocks or from none, in Black Forest Labs files only', async () => {
    const biases = [0, 1].flatMap((i) =>
      ['img', 'txt'].map((stream) => `double_blocks.${i}.${stream}_attn.qkv.bias`),
    );
    expect((await derive('transformer', {}, drop(...biases))).hasQkvBias).toBe(false);
    const some = await refusal('transformer', {}, drop(biases[3]!));
    expect(some.code).toBe('checkpoint_missing');
    expect(some.message).toContain(biases[3]);
    const path = folder.file('diffusers.safetensors');
    const shard = join(FIXTURES, 'tiny-schnell/transformer/diffusion_pytorch_model-0000');
    const second = await writeEdited(
      `${shard}2-of-00002.safetensors`,
      folder.file('second.safetensors'),
      () => {},
    );
    await writeEdited(`${shard}1-of-00002.safetensors`, path, () => {});
    const all = new Map<string, TensorEntry>();
    for (const file of [path, second])
      await writeEdited(file, file, (entries) => entries.forEach((t, n) => all.set(n, t)));
    for (const name of all.keys())
      if (/^transformer_blocks.*(to_|add_)[qkv](_proj)?\.bias$/.test(name)) all.delete(name);
    await writeSafetensors(path, all.values());
    const weights = await openWeights(path, 'transformer');
    const config = new Config('/model/config.json', { axes_dims_rope: [4, 10, 10] });
    expect(() => transformerSpec(weights, config)).toThrow(
      'lacks 6 tensors of the diffusers layout: transformer_blocks.0.attn.to_q.bias',
    );
  });

  test('half a guidance embedder is not none', async () => {
    const error = await refusal(
      'transformer',
      {},
      drop('guidance_in.out_layer.weight', 'guidance_in.out_layer.bias'),
    );
    expect(error.message).toContain('lacks 2 tensors');
  });

  test.each([
    [{ num_layers: 19 }, 'num_layers is 19; the weights say 2'],
    [{ guidance_embeds: false }, 'guidance_embeds is false; the weights say true'],
    [{ patch_size: 2 }, 'patch_size is 2'],
  ])('a config with %p is refused', async (config, message) => {
    expect((await refusal('transformer', config)).message).toContain(message);
  });
});

describe('autoencoder', () => {
  test("FLUX.1's latent statistics hold for 16 channels without a config, and nowhere else", async () => {
    const flux = vaeSpec(await openWeights(MINI_AE, 'vae'), NO_CONFIG);
    expect(flux).toMatchObject({
      scalingFactor: 0.3611,
      shiftFactor: 0.1159,
      normGroups: 32,
      scaleFactor: 8,
    });
    const weights = await openWeights(SOURCE.vae, 'vae');
    expect(() => vaeSpec(weights, NO_CONFIG)).toThrow(
      '/model/config.json: is needed for scaling_factor, and absent',
    );
    expect((await refusal('vae', { scaling_factor: null })).message).toContain('has no scaling_factor');
    expect((await refusal('vae', { scaling_factor: 0 })).message).toContain('scaling_factor is 0');
    expect((await derive('vae', { shift_factor: null })).shiftFactor).toBe(0);
  });

  test('quantisation convolutions and attention are there when their tensors are', async () => {
    const convs = [
      entry('quant_conv.weight', 'F32', [8, 8, 1, 1]),
      entry('quant_conv.bias', 'F32', [8]),
      entry('post_quant_conv.weight', 'F32', [4, 4, 1, 1]),
      entry('post_quant_conv.bias', 'F32', [4]),
    ];
    expect(await derive('vae', {}, put(...convs))).toMatchObject({
      hasQuantConv: true,
      hasPostQuantConv: true,
    });
    expect(await derive('vae')).toMatchObject({
      hasQuantConv: false,
      hasPostQuantConv: false,
      midAttention: true,
    });
    expect((await refusal('vae', { use_quant_conv: true })).message).toContain(
      'use_quant_conv is true; the weights say false',
    );
    const withoutAttention = await derive('vae', {}, (entries) => {
      for (const name of entries.keys()) if (name.includes('.attn_1.')) entries.delete(name);
    });
    expect(withoutAttention.midAttention).toBe(false);
    const oneSided = await refusal('vae', {}, (entries) => {
      for (const name of entries.keys()) if (name.startsWith('encoder.mid.attn_1.')) entries.delete(name);
    });
    expect(oneSided.message).toContain(
      'lacks 10 tensors of the Black Forest Labs layout: encoder.mid.attn_1.norm.weight',
    );
  });

  test.each([
    [{ norm_num_groups: 3 }, 'norm_num_groups is 3; it must divide the 8 channels'],
    [{ norm_num_groups: 0 }, 'norm_num_groups is 0; expected an integer of at least 1'],
    [{ block_out_channels: [8, 16] }, 'block_out_channels is [ 8, 16 ]; the weights say [ 8, 16, 24 ]'],
    [{ layers_per_block: 2 }, 'layers_per_block is 2; the weights say 1'],
    [{ act_fn: 'relu' }, `act_fn is 'relu'; supported: silu`],
  ])('a config with %p is refused', async (config, message) => {
    expect((await refusal('vae', config)).message).toContain(message);
  });

  test('a convolution of another size is named as the file names it', async () => {
    const error = await refusal(
      'vae',
      {},
      put(entry('decoder.up.2.block.1.conv1.weight', 'F32', [24, 24, 1, 1])),
    );
    expect(error.message).toContain(`tensor 'decoder.up.2.block.1.conv1.weight'`);
    expect(error.message).toContain('is [24, 24, 1, 1]; expected [24, 24, 3, 3]');
  });
});

describe('text encoders', () => {
  test('CLIP pools at the first end token, or at the highest id for the legacy end token', async () => {
    expect(await derive('clip')).toMatchObject({
      eosTokenId: 5,
      pooling: 'first_eos',
      activation: 'gelu',
      headDim: 8,
    });
    expect(await derive('clip', { eos_token_id: 2 })).toMatchObject({ eosTokenId: 2, pooling: 'highest_id' });
  });

  test.each([
    [{ num_attention_heads: 5 }, 'num_attention_heads is 5; it must divide the width 24'],
    [{ num_attention_heads: null }, 'has no num_attention_heads'],
    [{ hidden_act: 'relu' }, `hidden_act is 'relu'; supported: quick_gelu, gelu`],
    [{ num_hidden_layers: 12 }, 'num_hidden_layers is 12; the weights say 2'],
    [{ eos_token_id: null }, 'has no eos_token_id'],
  ])('a CLIP config with %p is refused', async (config, message) => {
    expect((await refusal('clip', config)).message).toContain(message);
  });

  test.each([
    [{ feed_forward_proj: 'relu' }, `feed_forward_proj is 'relu'; supported: gated-gelu`],
    [{ dense_act_fn: 'silu' }, `dense_act_fn is 'silu'; supported: gelu_new`],
    [{ d_kv: 64 }, 'd_kv is 64; the weights say 12'],
    [{ relative_attention_max_distance: 0 }, 'relative_attention_max_distance is 0'],
  ])('a T5 config with %p is refused', async (config, message) => {
    expect((await refusal('t5', config)).message).toContain(message);
  });

  test('tensors that do not fit are named', async () => {
    const clip = await refusal(
      'clip',
      {},
      put(entry('text_model.encoder.layers.1.mlp.fc2.bias', 'F32', [23])),
    );
    expect(clip.message).toContain(`'text_model.encoder.layers.1.mlp.fc2.bias' is [23]; expected [24]`);
    const t5 = await refusal('t5', {}, drop('encoder.block.2.layer.1.layer_norm.weight'));
    expect(t5.message).toContain(
      'lacks 1 tensors of the Hugging Face layout: encoder.block.2.layer.1.layer_norm.weight',
    );
    const late = 'encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight';
    expect((await refusal('t5', {}, put(entry(late, 'F32', [32, 3])))).message).toContain(
      `unknown tensors (${late})`,
    );
  });
});

describe('scheduler', () => {
  const read = async (values: Record<string, unknown>) => {
    await writeFile(folder.file('scheduler_config.json'), JSON.stringify(values));
    return readScheduler(folder.file('scheduler_config.json'));
  };

  test('absent keys have the defaults of diffusers; the folder will do', async () => {
    const defaults = {
      shift: 1,
      useDynamicShifting: false,
      baseShift: 0.5,
      maxShift: 1.15,
      baseImageSeqLen: 256,
      maxImageSeqLen: 4096,
    };
    expect(await read({})).toEqual(defaults);
    expect(await read({ shift: 3, use_dynamic_shifting: true, max_shift: 2 })).toEqual({
      ...defaults,
      shift: 3,
      useDynamicShifting: true,
      maxShift: 2,
    });
    expect((await readScheduler(folder.path)).shift).toBe(3);
  });

  test.each([
    [
      { _class_name: 'DDIMScheduler' },
      `describes 'DDIMScheduler'; supported: FlowMatchEulerDiscreteScheduler`,
    ],
    [{ use_karras_sigmas: true }, 'use_karras_sigmas is true; supported: false'],
    [{ shift_terminal: 0.02 }, 'shift_terminal is 0.02; supported: null'],
    [{ time_shift_type: 'linear' }, `time_shift_type is 'linear'; supported: exponential`],
    [{ num_train_timesteps: 100 }, 'num_train_timesteps is 100; supported: 1000'],
    [{ base_image_seq_len: 4096 }, 'max_image_seq_len 4096 is not above base_image_seq_len 4096'],
  ])('%p is refused', async (values, message) => {
    expect((await rejection(read(values))).message).toContain(message);
  });

  test('an absent one is missing', async () => {
    expect((await rejection(readScheduler(folder.file('nowhere')))).code).toBe('checkpoint_missing');
    expect((await rejection(readScheduler(join(FIXTURES, 'tiny-dev/variants')))).code).toBe(
      'checkpoint_missing',
    );
  });
});
