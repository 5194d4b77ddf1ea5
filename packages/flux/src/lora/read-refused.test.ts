import { appendFile, readFile, writeFile } from 'node:fs/promises';
import { writeSafetensors } from '../checkpoint/safetensors.ts';
import { entry, rejection, temporaryFolder } from '../checkpoint/testing.ts';
import type { Matrix } from './matrix.ts';
import { readLora } from './read.ts';
import { f32, HIDDEN, TARGET, type Tensors, Values, writeTensors } from './testing.ts';

const folder = temporaryFolder();

const values = new Values(30);
const D = HIDDEN;
const Q = 'transformer.transformer_blocks.0.attn.to_q';
const QKV = 'lora_unet_double_blocks_0_img_attn_qkv';

/** A sound PEFT change of `stem`, [out, in]. */
function peft(stem = Q, [out, inputs]: readonly [number, number] = [D, D], rank = 2): Record<string, Matrix> {
  const { down, up } = values.pair([out, inputs], rank);
  return { [`${stem}.lora_A.weight`]: down, [`${stem}.lora_B.weight`]: up };
}

function kohya(stem = QKV, out = 3 * D, inputs = D): Tensors {
  const { down, up } = values.pair([out, inputs], 2);
  return { [`${stem}.lora_down.weight`]: down, [`${stem}.lora_up.weight`]: up };
}

function withValue(value: number): Tensors {
  const tensors = peft();
  tensors[`${Q}.lora_B.weight`]!.data[5] = value;
  return tensors;
}

const half = { [`${Q}.lora_A.weight`]: values.matrix(2, D) };

/** What is wrong, the tensors, the code, and what the message says. */
test.each<[string, Tensors, 'lora_invalid' | 'lora_unsupported', ...string[]]>([
  ['no tensor at all', {}, 'lora_invalid', 'no tensors'],
  ['an unknown end', { ...peft(), [`${Q}.lora_C.weight`]: 1 }, 'lora_unsupported', `'${Q}.lora_C.weight'`],
  [
    'an unknown module',
    peft('transformer.transformer_blocks.0.attn.to_x'),
    'lora_unsupported',
    'attn.to_x.lora_A',
  ],
  [
    'a block with a leading zero',
    peft('transformer.transformer_blocks.00.attn.to_q'),
    'lora_unsupported',
    '.00.',
  ],
  [
    'the module of another model',
    kohya('lora_unet_down_blocks_0_attentions_0_proj_in'),
    'lora_unsupported',
    'down_blocks',
  ],
  ['a norm', peft('transformer.transformer_blocks.0.attn.norm_q'), 'lora_unsupported', 'norm_q'],
  [
    'a dotted path in kohya form',
    kohya('lora_unet_double_blocks.0.img_attn.qkv'),
    'lora_unsupported',
    'double_blocks.0',
  ],
  [
    'a block that the model does not have',
    peft('transformer.transformer_blocks.7.attn.to_q'),
    'lora_unsupported',
    'transformer_blocks.7.attn.to_q',
    'this model does not have',
  ],
  ['other columns', peft(Q, [D, 9]), 'lora_unsupported', `'${Q}'`, '[8, 9]', '[8, 8]'],
  ['other rows', peft(Q, [9, D]), 'lora_unsupported', `'${Q}'`, '[9, 8]', '[8, 8]'],
  [
    'rows that are not three projections',
    kohya(QKV, 3 * D + 1),
    'lora_invalid',
    `'${QKV}'`,
    '25 rows',
    'a multiple of 3',
  ],
  [
    'linear1 without rows for the MLP',
    kohya('lora_unet_single_blocks_0_linear1', 3 * D),
    'lora_invalid',
    'linear1',
    'more than 3 times its 8 columns',
  ],
  [
    'a widened input',
    peft('transformer.x_embedder', [D, 8]),
    'lora_unsupported',
    'transformer.x_embedder',
    '[8, 8]',
    '[8, 4]',
    'control LoRA',
  ],
  [
    'ranks that differ',
    { ...peft(), [`${Q}.lora_B.weight`]: values.matrix(D, 3) },
    'lora_invalid',
    `${Q}.lora_B.weight`,
    '[8, 3] and [2, 8]',
  ],
  [
    'one dimension',
    { ...peft(), [`${Q}.lora_B.weight`]: 1 },
    'lora_invalid',
    `${Q}.lora_B.weight`,
    '[]',
    'two dimensions',
  ],
  [
    'rank 0',
    { [`${Q}.lora_A.weight`]: values.matrix(0, D), [`${Q}.lora_B.weight`]: values.matrix(D, 0) },
    'lora_invalid',
    '[0, 8]',
  ],
  [
    'a half that is missing',
    half,
    'lora_invalid',
    `the up matrix of '${Q}' is missing`,
    `${Q}.lora_A.weight`,
  ],
  [
    'an alpha on its own',
    { ...peft(), 'transformer.proj_out.alpha': 1 },
    'lora_invalid',
    'transformer.proj_out.alpha',
  ],
  [
    'an alpha that is no number',
    { ...peft(), [`${Q}.alpha`]: values.matrix(1, 2) },
    'lora_invalid',
    `${Q}.alpha`,
    '[1, 2]',
  ],
  ['an alpha that is NaN', { ...peft(), [`${Q}.alpha`]: Number.NaN }, 'lora_invalid', `${Q}.alpha`, 'NaN'],
  [
    'an alpha beyond all bounds',
    { ...withValue(1e9), [`${Q}.alpha`]: 3e38 },
    'lora_invalid',
    `'${Q}'`,
    'beyond fp32',
  ],
  ['NaN', withValue(Number.NaN), 'lora_invalid', `${Q}.lora_B.weight`, 'NaN at element 5'],
  ['an infinite value', withValue(-Infinity), 'lora_invalid', `${Q}.lora_B.weight`, '-Infinity at element 5'],
  [
    'one role twice',
    { ...peft(), [`${Q}.lora_up.weight`]: values.matrix(D, 2) },
    'lora_invalid',
    `${Q}.lora_B.weight`,
    `${Q}.lora_up.weight`,
  ],
  [
    'one module in two dialects',
    { ...peft(), ...kohya() },
    'lora_invalid',
    `'${Q}'`,
    `'${QKV}'`,
    'transformer_blocks.0.attn.to_q',
  ],
  [
    'one module under two prefixes',
    { ...peft(), ...peft(Q.replace('transformer.', 'diffusion_model.')) },
    'lora_invalid',
    'both change',
  ],
  [
    'a bias',
    { ...peft(), [`${Q}.lora_B.bias`]: values.matrix(1, D) },
    'lora_unsupported',
    `${Q}.lora_B.bias`,
    'a bias',
  ],
  ['a whole weight', { [`${QKV}.diff`]: values.matrix(3 * D, D) }, 'lora_unsupported', `${QKV}.diff`],
  [
    'the norms of a control LoRA',
    {
      ...peft('double_blocks.0.img_attn.proj'),
      'double_blocks.0.img_attn.norm.key_norm.scale': values.matrix(1, D),
    },
    'lora_unsupported',
    'key_norm.scale',
    'control LoRA',
  ],
  [
    'T5',
    { ...peft(), ...peft('text_encoder_2.encoder.block.0.layer.0.SelfAttention.q') },
    'lora_unsupported',
    'SelfAttention.q',
    'T5',
  ],
  [
    'the position embedding of CLIP',
    { ...peft(), ...peft('text_encoder.text_model.embeddings.position_embedding') },
    'lora_unsupported',
    'position embedding',
  ],
  [
    'nothing but zeros',
    {
      [`${Q}.lora_A.weight`]: values.matrix(2, D),
      [`${Q}.lora_B.weight`]: { rows: D, columns: 2, data: new Float32Array(2 * D) },
    },
    'lora_invalid',
    'changes nothing',
  ],
])('%s', async (_, tensors, code, ...says) => {
  const file = await writeTensors(folder.file('refused.safetensors'), tensors);
  const error = await rejection(readLora(file, TARGET));
  expect(error.code).toBe(code);
  expect(error.message.startsWith(`${file}: `)).toBe(true);
  for (const text of says) expect(error.message).toContain(text);
});

test('integer weights', async () => {
  const file = folder.file('integers.safetensors');
  await writeSafetensors(file, [
    entry(`${Q}.lora_A.weight`, 'I8', [2, D]),
    entry(`${Q}.lora_B.weight`, 'I8', [D, 2]),
  ]);
  const error = await rejection(readLora(file, TARGET));
  expect(error.code).toBe('lora_unsupported');
  expect(error.message).toContain('has dtype I8; weights may be F64, F32, F16, BF16');
});

test.each([
  ['a file that goes on after its last tensor', 'lora_invalid', (file: string) => appendFile(file, 'x')],
  ['a file that is no safetensors file', 'lora_invalid', (file: string) => writeFile(file, 'PK\u0003\u0004')],
])('%s', async (_, code, mangle) => {
  const file = await writeTensors(folder.file('mangled.safetensors'), peft());
  await mangle(file);
  expect((await rejection(readLora(file, TARGET))).code).toBe(code);
});

test('tensors that overlap', async () => {
  const file = folder.file('overlap.safetensors');
  await writeSafetensors(
    file,
    Object.entries(peft()).map(([name, value]) => f32(name, value)),
  );
  const bytes = await readFile(file);
  const text = bytes.toString('latin1').replace('"data_offsets":[64,128]', '"data_offsets":[0,64]  ');
  await writeFile(file, Buffer.from(text, 'latin1'));
  const error = await rejection(readLora(file, TARGET));
  expect(error.code).toBe('lora_invalid');
  expect(error.message).toContain('overlaps');
});

test('a file that is not there is not the fault of its content', async () => {
  expect((await rejection(readLora(folder.file('none.safetensors'), null))).code).toBe('checkpoint_missing');
});
