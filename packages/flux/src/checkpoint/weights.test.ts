import { join } from 'node:path';
import { readTensor, writeSafetensors, type TensorEntry } from './safetensors.ts';
import { readFloat32 } from './tensor-view.ts';
import { entry, FIXTURES, readEntries, rejection, temporaryFolder, writeEdited } from './testing.ts';
import { openWeights } from './weights.ts';

const folder = temporaryFolder();
const DEV = join(FIXTURES, 'tiny-dev');
const SCHNELL = join(FIXTURES, 'tiny-schnell');
const BFL_TRANSFORMER = join(DEV, 'transformer.safetensors');

type Edit = (entries: Map<string, TensorEntry>) => void;

const renamed =
  (rename: (name: string) => string): Edit =>
  (entries) => {
    const tensors = [...entries.values()];
    entries.clear();
    for (const tensor of tensors) entries.set(rename(tensor.name), { ...tensor, name: rename(tensor.name) });
  };

const prefixed = (prefix: string): Edit => renamed((name) => prefix + name);

/** diffusers before 0.18. */
const oldAttentionName = (name: string) =>
  name
    .replace('.to_q.', '.query.')
    .replace('.to_k.', '.key.')
    .replace('.to_v.', '.value.')
    .replace('.to_out.0.', '.proj_attn.');

const added =
  (...tensors: TensorEntry[]): Edit =>
  (entries) => {
    for (const tensor of tensors) entries.set(tensor.name, tensor);
  };

describe('transformer', () => {
  test('fused tensors of a Black Forest Labs file are views of their rows', async () => {
    const weights = await openWeights(BFL_TRANSFORMER, 'transformer');
    const stored = await readEntries(BFL_TRANSFORMER);
    const rows = (name: string, begin: number, end: number) => {
      const { data, shape } = stored.get(name)!;
      const rowBytes = (data as Uint8Array).byteLength / shape[0]!;
      return (data as Uint8Array).slice(begin * rowBytes, end * rowBytes);
    };
    // Width 60, MLP 240.
    const cases: [string, string, number, number][] = [
      ['transformer_blocks.1.attn.to_q.weight', 'double_blocks.1.img_attn.qkv.weight', 0, 60],
      ['transformer_blocks.1.attn.to_k.weight', 'double_blocks.1.img_attn.qkv.weight', 60, 120],
      ['transformer_blocks.1.attn.add_v_proj.bias', 'double_blocks.1.txt_attn.qkv.bias', 120, 180],
      ['single_transformer_blocks.2.attn.to_v.bias', 'single_blocks.2.linear1.bias', 120, 180],
      ['single_transformer_blocks.2.proj_mlp.weight', 'single_blocks.2.linear1.weight', 180, 420],
      [
        'transformer_blocks.0.attn.norm_added_k.weight',
        'double_blocks.0.txt_attn.norm.key_norm.scale',
        0,
        20,
      ],
      ['norm_out.linear_shift.weight', 'final_layer.adaLN_modulation.1.weight', 0, 60],
      ['norm_out.linear_scale.bias', 'final_layer.adaLN_modulation.1.bias', 60, 120],
      ['time_text_embed.guidance_embedder.linear_2.weight', 'guidance_in.out_layer.weight', 0, 60],
    ];
    for (const [canonical, name, begin, end] of cases) {
      const view = weights.get(canonical);
      expect(view).toMatchObject({ name: canonical, stored: name });
      expect(view.shape[0]).toBe(end - begin);
      expect(await readTensor(view)).toEqual(rows(name, begin, end));
    }
  });

  test('diffusers stores the halves of the final adaLN the other way round', async () => {
    const weights = await openWeights(join(SCHNELL, 'transformer'), 'transformer');
    const scale = weights.get('norm_out.linear_scale.weight');
    const shift = weights.get('norm_out.linear_shift.weight');
    expect(scale.stored).toBe('norm_out.linear.weight');
    expect(shift.offset).toBe(scale.offset + scale.byteLength);
    expect(weights.has('norm_out.linear.weight')).toBe(false);
  });

  test.each(['model.diffusion_model.', 'diffusion_model.'])('an all-in-one file with %s', async (prefix) => {
    const path = folder.file('all-in-one.safetensors');
    await writeEdited(BFL_TRANSFORMER, path, (entries) => {
      prefixed(prefix)(entries);
      added(
        entry('vae.decoder.conv_in.weight', 'F32', [1]),
        entry('text_encoders.t5xxl.logit_scale', 'F32', []),
      )(entries);
    });
    const plain = await openWeights(BFL_TRANSFORMER, 'transformer');
    const weights = await openWeights(path, 'transformer');
    expect(weights.names().sort()).toEqual(plain.names().sort());
    expect(weights.get('x_embedder.weight').stored).toBe(`${prefix}img_in.weight`);
    await writeEdited(path, path, added(entry('stray.weight', 'F32', [1])));
    const error = await rejection(openWeights(path, 'transformer'));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain('1 unknown tensors: stray.weight');
  });

  test('rows that cannot be shared out name the tensor', async () => {
    const path = folder.file('rows.safetensors');
    await writeEdited(BFL_TRANSFORMER, path, added(entry('double_blocks.0.img_attn.qkv.bias', 'F32', [181])));
    const error = await rejection(openWeights(path, 'transformer'));
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toContain(`tensor 'double_blocks.0.img_attn.qkv.bias' has 181 rows`);
    await writeEdited(BFL_TRANSFORMER, path, added(entry('single_blocks.0.linear1.bias', 'F32', [100])));
    expect((await rejection(openWeights(path, 'transformer'))).message).toContain(
      `tensor 'single_blocks.0.linear1.bias' has 100 rows`,
    );
  });

  test('a file of something else is told apart', async () => {
    const error = await rejection(openWeights(join(DEV, 'ae.safetensors'), 'transformer'));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain('is not a FLUX transformer');
  });

  test('weights of integers are refused', async () => {
    const path = folder.file('integers.safetensors');
    await writeEdited(BFL_TRANSFORMER, path, added(entry('img_in.weight', 'I8', [60, 16])));
    const error = await rejection(openWeights(path, 'transformer'));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain(`tensor 'img_in.weight' has dtype I8; weights may be F64, F32,`);
  });

  test('an unknown name is asked for by the name that the file would use', async () => {
    const weights = await openWeights(BFL_TRANSFORMER, 'transformer');
    expect(() => weights.get('transformer_blocks.7.attn.to_v.weight')).toThrow(
      `has no tensor 'double_blocks.7.img_attn.qkv.weight'`,
    );
  });
});

describe('scaled fp8', () => {
  const SCALED = join(DEV, 'variants/fp8_scaled.safetensors');

  test('each weight has the factor beside it, whatever its spelling; markers are no weights', async () => {
    const stored = await readEntries(SCALED);
    const scale = (module: string) =>
      new Float32Array((stored.get(`${module}.scale_weight`)!.data as Uint8Array).buffer)[0];
    const newer = folder.file('newer.safetensors');
    await writeEdited(SCALED, newer, (entries) => {
      renamed((name) =>
        name.replace('.scale_weight', '.weight_scale').replace('.scale_input', '.input_scale'),
      )(entries);
      added(entry('double_blocks.0.img_mlp.0.comfy_quant', 'U8', [4]))(entries);
    });
    for (const path of [SCALED, newer]) {
      const weights = await openWeights(path, 'transformer');
      expect(weights.get('transformer_blocks.0.attn.to_k.weight').scale).toBe(
        scale('double_blocks.0.img_attn.qkv'),
      );
      expect(weights.get('single_transformer_blocks.0.proj_out.weight').scale).toBe(
        scale('single_blocks.0.linear2'),
      );
      expect(weights.get('transformer_blocks.0.attn.to_k.bias').scale).toBe(1);
      expect(
        weights
          .names()
          .filter((name) => /scale$|scale_|scaled|quant/.test(name) && !name.includes('norm_out')),
      ).toEqual([]);
    }
  });

  test('values are stored values times the scale', async () => {
    const view = (await openWeights(SCALED, 'transformer')).get('transformer_blocks.0.attn.to_out.0.weight');
    const plain = (await openWeights(BFL_TRANSFORMER, 'transformer')).get(
      'transformer_blocks.0.attn.to_out.0.weight',
    );
    const [scaled, exact] = [await readFloat32(view), await readFloat32(plain)];
    const largest = Math.max(...exact.map(Math.abs));
    const worst = Math.max(...scaled.map((value, i) => Math.abs(value - exact[i]!)));
    // Three bits of mantissa: off by at most a 16th, and by far more without the scale.
    expect(worst).toBeLessThan(largest / 15);
    expect(view.scale).toBeLessThan(0.1);
  });

  test.each<[string, TensorEntry, string]>([
    [
      'a scale per row',
      entry('img_in.scale_weight', 'F32', [60, 1]),
      'is F32 [60, 1]; one floating-point number',
    ],
    ['two numbers', entry('img_in.scale_weight', 'F32', [2]), 'is F32 [2]; one floating-point number'],
    ['an integer', entry('img_in.scale_weight', 'U8', []), 'is U8 []; one floating-point number'],
    ['a scale of 0', entry('img_in.scale_weight', 'F32', []), `scale 'img_in.scale_weight' is 0; a positive`],
    ['a scale of nothing', entry('img_out.scale_weight', 'F32', []), `but no 'img_out.weight'`],
    [
      'two scales',
      entry('double_blocks.0.img_mlp.0.weight_scale', 'F32', []),
      `scale 'double_blocks.0.img_mlp.0.weight'`,
    ],
  ])('%s is refused', async (_, tensor, message) => {
    const path = folder.file('scale.safetensors');
    const valid = tensor.name.startsWith('img_out')
      ? { ...tensor, data: new Uint8Array(Float32Array.of(2).buffer) }
      : tensor;
    await writeEdited(SCALED, path, added(valid));
    expect((await rejection(openWeights(path, 'transformer'))).message).toContain(message);
  });
});

describe('autoencoder', () => {
  test('a Black Forest Labs file counts the levels of its decoder from the other end', async () => {
    const weights = await openWeights(join(DEV, 'ae.safetensors'), 'vae');
    const levels = new Set(
      weights.names().flatMap((name) => /^decoder\.up_blocks\.(\d+)/.exec(name)?.[1] ?? []),
    );
    const first = weights.get('decoder.up_blocks.0.resnets.0.norm1.weight');
    expect(first.stored).toBe(`decoder.up.${levels.size - 1}.block.0.norm1.weight`);
    expect(weights.get('encoder.down_blocks.0.resnets.0.norm1.weight').stored).toBe(
      'encoder.down.0.block.0.norm1.weight',
    );
    expect(weights.names().filter((name) => name.includes('nin_shortcut'))).toEqual([]);
    expect(weights.names().some((name) => name.endsWith('.conv_shortcut.weight'))).toBe(true);
    const query = weights.get('encoder.mid_block.attentions.0.to_q.weight');
    expect(query.shape).toEqual([query.shape[0], query.shape[0]]);
    for (const name of weights.names())
      expect(weights.layout.storedName(name)).toBe(weights.get(name).stored);
  });

  test('the attention names of old diffusers files are known', async () => {
    const source = join(SCHNELL, 'vae/diffusion_pytorch_model.safetensors');
    const path = folder.file('old-vae.safetensors');
    await writeEdited(source, path, renamed(oldAttentionName));
    const [old, current] = [await openWeights(path, 'vae'), await openWeights(source, 'vae')];
    expect(old.names().sort()).toEqual(current.names().sort());
    expect(old.get('decoder.mid_block.attentions.0.to_out.0.bias').stored).toBe(
      'decoder.mid_block.attentions.0.proj_attn.bias',
    );
  });

  test('one inside an all-in-one file is found by its prefix', async () => {
    const path = folder.file('vae-inside.safetensors');
    await writeEdited(join(DEV, 'ae.safetensors'), path, prefixed('vae.'));
    expect((await openWeights(path, 'vae')).get('decoder.conv_in.weight').stored).toBe(
      'vae.decoder.conv_in.weight',
    );
  });
});

describe('text encoders', () => {
  test('CLIP without its prefix, and with the rest of CLIP around it', async () => {
    const source = join(DEV, 'text_encoder/model.safetensors');
    const plain = (await openWeights(source, 'clip')).names().sort();
    expect(plain[0]).toMatch(/^text_model\./);
    const bare = folder.file('bare-clip.safetensors');
    await writeEdited(
      source,
      bare,
      renamed((name) => name.replace(/^text_model\./, '')),
    );
    expect((await openWeights(bare, 'clip')).names().sort()).toEqual(plain);
    const whole = folder.file('whole-clip.safetensors');
    await writeEdited(
      source,
      whole,
      added(
        entry('text_model.embeddings.position_ids', 'I64', [1, 77]),
        entry('vision_model.x', 'F32', [1]),
        entry('text_projection.weight', 'F32', [1]),
        entry('logit_scale', 'F32', []),
      ),
    );
    expect((await openWeights(whole, 'clip')).names().sort()).toEqual(plain);
  });

  test('T5 by either name of its embedding, decoder and packed tokenizer left out', async () => {
    const source = join(DEV, 'text_encoder_2/model.safetensors');
    const plain = (await openWeights(source, 't5')).names().sort();
    expect(plain).toContain('shared.weight');
    const path = folder.file('t5.safetensors');
    await writeEdited(source, path, (entries) => {
      added({ ...entries.get('shared.weight')!, name: 'encoder.embed_tokens.weight' })(entries);
      added(entry('decoder.block.0.x', 'F32', [1]), entry('lm_head.weight', 'F32', [1]))(entries);
      added(entry('spiece_model', 'U8', [3]))(entries);
    });
    const both = await openWeights(path, 't5');
    expect(both.names().sort()).toEqual(plain);
    expect(both.get('shared.weight').stored).toBe('shared.weight');
    await writeEdited(path, path, (entries) => entries.delete('shared.weight'));
    const tied = await openWeights(path, 't5');
    expect(tied.names().sort()).toEqual(plain);
    expect(tied.get('shared.weight').stored).toBe('encoder.embed_tokens.weight');
  });

  test.each(['clip', 't5', 'vae'] as const)('%s is told from a transformer', async (part) => {
    const error = await rejection(openWeights(BFL_TRANSFORMER, part));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain('is not a');
  });

  test('a weight under two names is refused', async () => {
    const path = folder.file('twice.safetensors');
    await writeSafetensors(path, [
      entry('decoder.up_blocks.0.x', 'F32', [1]),
      entry('a.attentions.0.query.weight', 'F32', [1]),
      entry('encoder.mid_block.attentions.0.query.weight', 'F32', [1]),
      entry('encoder.mid_block.attentions.0.to_q.weight', 'F32', [1]),
    ]);
    const error = await rejection(openWeights(path, 'vae'));
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toContain('are the same weight');
  });
});
