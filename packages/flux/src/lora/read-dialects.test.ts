import { type EncodedDtype, encodeFloat32 } from '../checkpoint/dtypes.ts';
import { writeSafetensors } from '../checkpoint/safetensors.ts';
import { temporaryFolder } from '../checkpoint/testing.ts';
import type { Matrix } from './matrix.ts';
import { readLora } from './read.ts';
import { expectChanges, HIDDEN, MLP, product, rowsOf, TARGET, Values, writeTensors } from './testing.ts';

const folder = temporaryFolder();

const D = HIDDEN;
const DOUBLE = 'transformer_blocks.1';
const SINGLE = 'single_transformer_blocks.1';
const LAYER = 'text_model.encoder.layers.1';

/** Rows [begin, end) of what the file calls one module. */
type Rows = Record<string, readonly [begin: number, end: number]>;

const IMG_QKV: Rows = {
  [`${DOUBLE}.attn.to_q`]: [0, D],
  [`${DOUBLE}.attn.to_k`]: [D, 2 * D],
  [`${DOUBLE}.attn.to_v`]: [2 * D, 3 * D],
};
const TXT_QKV: Rows = {
  [`${DOUBLE}.attn.add_q_proj`]: [0, D],
  [`${DOUBLE}.attn.add_k_proj`]: [D, 2 * D],
  [`${DOUBLE}.attn.add_v_proj`]: [2 * D, 3 * D],
};
const SINGLE_QKV: Rows = {
  [`${SINGLE}.attn.to_q`]: [0, D],
  [`${SINGLE}.attn.to_k`]: [D, 2 * D],
  [`${SINGLE}.attn.to_v`]: [2 * D, 3 * D],
};
const LINEAR1: Rows = { ...SINGLE_QKV, [`${SINGLE}.proj_mlp`]: [3 * D, 3 * D + MLP] };
/** Black Forest Labs put the shift first, diffusers the scale. */
const ADA_LN_BFL: Rows = { 'norm_out.linear_shift': [0, D], 'norm_out.linear_scale': [D, 2 * D] };
const ADA_LN_DIFFUSERS: Rows = { 'norm_out.linear_scale': [0, D], 'norm_out.linear_shift': [D, 2 * D] };
const whole = (module: string): Rows => {
  const [rows] = (TARGET.transformer.get(module) ?? TARGET.clip.get(module))!;
  return { [module]: [0, rows] };
};

/** Every module of Black Forest Labs' layout. */
const BFL: Record<string, Rows> = {
  img_in: whole('x_embedder'),
  txt_in: whole('context_embedder'),
  'time_in.in_layer': whole('time_text_embed.timestep_embedder.linear_1'),
  'time_in.out_layer': whole('time_text_embed.timestep_embedder.linear_2'),
  'vector_in.in_layer': whole('time_text_embed.text_embedder.linear_1'),
  'vector_in.out_layer': whole('time_text_embed.text_embedder.linear_2'),
  'guidance_in.in_layer': whole('time_text_embed.guidance_embedder.linear_1'),
  'guidance_in.out_layer': whole('time_text_embed.guidance_embedder.linear_2'),
  'double_blocks.1.img_mod.lin': whole(`${DOUBLE}.norm1.linear`),
  'double_blocks.1.txt_mod.lin': whole(`${DOUBLE}.norm1_context.linear`),
  'double_blocks.1.img_attn.qkv': IMG_QKV,
  'double_blocks.1.txt_attn.qkv': TXT_QKV,
  'double_blocks.1.img_attn.proj': whole(`${DOUBLE}.attn.to_out.0`),
  'double_blocks.1.txt_attn.proj': whole(`${DOUBLE}.attn.to_add_out`),
  'double_blocks.1.img_mlp.0': whole(`${DOUBLE}.ff.net.0.proj`),
  'double_blocks.1.img_mlp.2': whole(`${DOUBLE}.ff.net.2`),
  'double_blocks.1.txt_mlp.0': whole(`${DOUBLE}.ff_context.net.0.proj`),
  'double_blocks.1.txt_mlp.2': whole(`${DOUBLE}.ff_context.net.2`),
  'single_blocks.1.modulation.lin': whole(`${SINGLE}.norm.linear`),
  'single_blocks.1.linear1': LINEAR1,
  'single_blocks.1.linear2': whole(`${SINGLE}.proj_out`),
  'final_layer.adaLN_modulation.1': ADA_LN_BFL,
  'final_layer.linear': whole('proj_out'),
};
/** Every module of diffusers' layout outside the blocks, and inside one of each kind. */
const DIFFUSERS: Record<string, Rows> = {
  'norm_out.linear': ADA_LN_DIFFUSERS,
  ...Object.fromEntries(
    [...TARGET.transformer.keys()]
      .filter((module) => !module.startsWith('norm_out.') && !module.includes('blocks.0.'))
      .map((module) => [module, whole(module)]),
  ),
};
const CLIP: Record<string, Rows> = Object.fromEntries(
  ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.out_proj', 'mlp.fc1', 'mlp.fc2']
    .map((name) => `${LAYER}.${name}`)
    .map((module) => [module, whole(module)]),
);
const XLABS: Record<string, Rows> = {
  'double_blocks.1.processor.qkv_lora1': IMG_QKV,
  'double_blocks.1.processor.qkv_lora2': TXT_QKV,
  'double_blocks.1.processor.proj_lora1': whole(`${DOUBLE}.attn.to_out.0`),
  'double_blocks.1.processor.proj_lora2': whole(`${DOUBLE}.attn.to_add_out`),
  'single_blocks.1.processor.qkv_lora': SINGLE_QKV,
  'single_blocks.1.processor.proj_lora': whole(`${SINGLE}.proj_out`),
};

const flat = (path: string): string => path.replaceAll('.', '_');
const same = (path: string): string => path;
const AB = ['.lora_A.weight', '.lora_B.weight'] as const;
const DOWN_UP = ['.lora_down.weight', '.lora_up.weight'] as const;

test.each([
  ['kohya', 'lora_unet_', flat, BFL, DOWN_UP],
  ['kohya', 'lora_te1_', flat, CLIP, DOWN_UP],
  ['kohya', 'lora_te_', flat, CLIP, DOWN_UP],
  ['comfyui', 'diffusion_model.', same, BFL, DOWN_UP],
  ['comfyui', 'diffusion_model.', same, BFL, AB],
  ['comfyui', 'diffusion_model.', same, DIFFUSERS, AB],
  ['comfyui', 'text_encoders.clip_l.transformer.', same, CLIP, DOWN_UP],
  ['peft', 'transformer.', same, DIFFUSERS, AB],
  ['peft', 'text_encoder.', same, CLIP, AB],
  ['onetrainer', 'lora_transformer_', flat, DIFFUSERS, DOWN_UP],
  ['xlabs', '', same, XLABS, ['.down.weight', '.up.weight']],
  ['bfl', '', same, BFL, AB],
  ['bfl', 'base_model.model.', same, BFL, AB],
  ['lycoris', 'lycoris_', flat, DIFFUSERS, DOWN_UP],
  ['lycoris', 'lycoris_', flat, BFL, DOWN_UP],
] as const)('%s: every module behind "%s"', async (dialect, prefix, spell, modules, [down, up]) => {
  const values = new Values(7);
  const tensors: Parameters<typeof writeTensors>[1] = {};
  const expected: Record<string, Matrix> = {};
  let index = 0;
  for (const [path, parts] of Object.entries(modules)) {
    const rows = Math.max(...Object.values(parts).map(([, end]) => end));
    const [first] = Object.keys(parts) as [string];
    const [, columns] = (TARGET.transformer.get(first) ?? TARGET.clip.get(first))!;
    const rank = 1 + (index % 4);
    const alpha = [undefined, 3, 0, 0.5][index++ % 4];
    const pair = values.pair([rows, columns], rank);
    const stem = prefix + spell(path);
    tensors[stem + down] = pair.down;
    tensors[stem + up] = pair.up;
    if (alpha !== undefined) tensors[`${stem}.alpha`] = alpha;
    const change = product(pair.up, pair.down, alpha ? alpha / rank : 1);
    for (const [module, [begin, end]] of Object.entries(parts)) expected[module] = rowsOf(change, begin, end);
  }
  const file = await writeTensors(folder.file('dialect.safetensors'), tensors);
  const lora = await readLora(file, TARGET);
  expect(lora).toMatchObject({ dialects: [dialect], warnings: [] });
  expectChanges(new Map([...lora.transformer, ...lora.clip]), expected);
  expect(await readLora(file, null)).toEqual(lora);
});

test('a file may mix dialects', async () => {
  const values = new Values(8);
  const [q, fc1] = [values.pair([D, D], 2), values.pair([16, 8], 1)];
  const file = await writeTensors(folder.file('mixed.safetensors'), {
    [`transformer.${DOUBLE}.attn.to_q.lora_A.weight`]: q.down,
    [`transformer.${DOUBLE}.attn.to_q.lora_B.weight`]: q.up,
    [`lora_te1_${flat(LAYER)}_mlp_fc1.lora_down.weight`]: fc1.down,
    [`lora_te1_${flat(LAYER)}_mlp_fc1.lora_up.weight`]: fc1.up,
  });
  const lora = await readLora(file, TARGET);
  expect([...lora.dialects].sort()).toEqual(['kohya', 'peft']);
  expectChanges(lora.transformer, { [`${DOUBLE}.attn.to_q`]: product(q.up, q.down) });
  expectChanges(lora.clip, { [`${LAYER}.mlp.fc1`]: product(fc1.up, fc1.down) });
});

test('projections trained apart and stacked come apart, with their own ranks', async () => {
  const values = new Values(9);
  const [q, v] = [values.pair([D, D], 1), values.pair([D, D], 2)];
  const up = { rows: 3 * D, columns: 3, data: new Float32Array(9 * D) };
  for (let row = 0; row < D; row++) {
    up.data[row * 3] = q.up.data[row]!;
    up.data.set(v.up.data.subarray(row * 2, row * 2 + 2), (2 * D + row) * 3 + 1);
  }
  const down = { rows: 3, columns: D, data: Float32Array.of(...q.down.data, ...v.down.data) };
  const stem = 'lora_unet_double_blocks_1_img_attn_qkv';
  const file = await writeTensors(folder.file('stacked.safetensors'), {
    [`${stem}.lora_down.weight`]: down,
    [`${stem}.lora_up.weight`]: up,
    [`${stem}.alpha`]: 6,
  });
  const { transformer, warnings } = await readLora(file, TARGET);
  expect(warnings).toEqual([]);
  expect([...transformer.values()].map(({ module, rank }) => [module, rank])).toEqual([
    [`${DOUBLE}.attn.to_q`, 1],
    [`${DOUBLE}.attn.to_v`, 2],
  ]);
  expectChanges(transformer, {
    [`${DOUBLE}.attn.to_q`]: product(q.up, q.down, 2),
    [`${DOUBLE}.attn.to_v`]: product(v.up, v.down, 2),
  });
});

test('split projections share their input matrix, which is counted once', async () => {
  const { down, up } = new Values(10).pair([3 * D, D], 2);
  const stem = 'lora_unet_double_blocks_1_img_attn_qkv';
  const file = await writeTensors(folder.file('shared.safetensors'), {
    [`${stem}.lora_down.weight`]: down,
    [`${stem}.lora_up.weight`]: up,
  });
  const { transformer, byteLength } = await readLora(file, TARGET);
  expect(new Set([...transformer.values()].map((delta) => delta.down)).size).toBe(1);
  expect(byteLength).toBe(4 * (2 * D + 3 * D * 2));
});

test.each<EncodedDtype>(['F32', 'F16', 'BF16', 'F8_E4M3'])('values in %s', async (dtype) => {
  const { down, up } = new Values(11).pair([D, D], 2);
  const tensor = (name: string, matrix: typeof up) => ({
    name: `transformer.${DOUBLE}.attn.to_q.${name}.weight`,
    dtype,
    shape: [matrix.rows, matrix.columns],
    data: encodeFloat32(dtype, matrix.data),
  });
  const file = folder.file('dtype.safetensors');
  await writeSafetensors(file, [tensor('lora_A', down), tensor('lora_B', up)]);
  expectChanges((await readLora(file, TARGET)).transformer, {
    [`${DOUBLE}.attn.to_q`]: product(up, down),
  });
});

test('what is zero or of no use is left out with a warning', async () => {
  const values = new Values(12);
  const q = values.pair([D, D], 2);
  const zeros = (rows: number, columns: number) => ({
    rows,
    columns,
    data: new Float32Array(rows * columns),
  });
  const clip = 'text_encoders.clip_l.transformer';
  const file = await writeTensors(folder.file('idle.safetensors'), {
    'diffusion_model.transformer_blocks.1.attn.to_q.lora_A.weight': q.down,
    'diffusion_model.transformer_blocks.1.attn.to_q.lora_B.weight': q.up,
    'diffusion_model.img_in.lora_A.weight': values.matrix(2, 4),
    'diffusion_model.img_in.lora_B.weight': zeros(D, 2),
    'diffusion_model.img_in.diff_b': zeros(1, D),
    'text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_down.weight': values.matrix(
      2,
      4,
    ),
    'text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.lora_up.weight': zeros(4, 2),
    [`${clip}.text_model.embeddings.position_embedding.lora_down.weight`]: zeros(2, 8),
    [`${clip}.text_model.embeddings.position_embedding.lora_up.weight`]: values.matrix(7, 2),
    [`${clip}.text_projection.lora_down.weight`]: values.matrix(2, 8),
    [`${clip}.text_projection.lora_up.weight`]: values.matrix(8, 2),
  });
  const lora = await readLora(file, TARGET);
  expectChanges(lora.transformer, { [`${DOUBLE}.attn.to_q`]: product(q.up, q.down) });
  expect(lora.clip.size).toBe(0);
  expect([...lora.warnings].sort()).toEqual([
    'Left out because it is zero: a bias (diffusion_model.img_in.diff_b).',
    'Left out because it is zero: the T5 text encoder (text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q).',
    'Left out because it is zero: the change (diffusion_model.img_in).',
    `Left out because it is zero: the position embedding of CLIP (${clip}.text_model.embeddings.position_embedding).`,
    `Left out: the text projection of CLIP, which FLUX does not use (${clip}.text_projection).`,
  ]);
});
