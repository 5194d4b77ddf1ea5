import { rejection, temporaryFolder } from '../checkpoint/testing.ts';
import { type Matrix, multiply } from './matrix.ts';
import { readLora } from './read.ts';
import { expectChanges, HIDDEN, TARGET, type Tensors, Values, writeTensors } from './testing.ts';

const folder = temporaryFolder();

const MODULE = 'transformer_blocks.0.ff.net.0.proj';
const STEM = 'lycoris_transformer_blocks_0_ff_net_0_proj';
const [ROWS, COLUMNS] = TARGET.transformer.get(MODULE)!;

/** By the definition, element by element, in fp64. */
function elements(rows: number, columns: number, value: (row: number, column: number) => number): Matrix {
  const data = Float32Array.from({ length: rows * columns }, (_, i) =>
    value(Math.floor(i / columns), i % columns),
  );
  return { rows, columns, data };
}

const at = (matrix: Matrix, row: number, column: number): number =>
  matrix.data[row * matrix.columns + column]!;

async function read(tensors: Tensors) {
  const named = Object.fromEntries(Object.entries(tensors).map(([end, value]) => [`${STEM}.${end}`, value]));
  return readLora(await writeTensors(folder.file('lycoris.safetensors'), named), TARGET);
}

// ff.net.0.proj is [32, 8]: the product of two changes of rank 3 has any rank that it can have.
test.each([
  ['a product of both ranks', 2, 4],
  ['the change and an identity', 3, 8],
])('LoHa as %s', async (_, rank, expectedRank) => {
  const values = new Values(rank);
  const [a1, b1] = [values.matrix(ROWS, rank), values.matrix(rank, COLUMNS)];
  const [a2, b2] = [values.matrix(ROWS, rank), values.matrix(rank, COLUMNS)];
  const lora = await read({ hada_w1_a: a1, hada_w1_b: b1, hada_w2_a: a2, hada_w2_b: b2, alpha: 1 });
  const [first, second] = [multiply(a1, b1), multiply(a2, b2)];
  expectChanges(lora.transformer, {
    [MODULE]: elements(ROWS, COLUMNS, (i, j) => (at(first, i, j) * at(second, i, j)) / rank),
  });
  expect(lora).toMatchObject({ dialects: ['lycoris', 'loha'], warnings: [] });
  expect(lora.transformer.get(MODULE)!.rank).toBe(expectedRank);
});

/** w1 is [4, 2] and w2 [8, 4], each whole or of rank 1 or 2. */
test.each([
  ['both whole: alpha does not count', null, null, 1, 8],
  ['w1 whole', null, 2, 5 / 2, 4],
  ['w2 whole', 2, null, 5 / 2, 8],
  ['both products', 1, 1, 5, 1],
])('LoKr, %s', async (_, rank1, rank2, scale, expectedRank) => {
  const values = new Values(20);
  const half = (name: string, rows: number, columns: number, rank: number | null): [Tensors, Matrix] => {
    if (rank === null) {
      const matrix = values.matrix(rows, columns);
      return [{ [name]: matrix }, matrix];
    }
    const [a, b] = [values.matrix(rows, rank), values.matrix(rank, columns)];
    return [{ [`${name}_a`]: a, [`${name}_b`]: b }, multiply(a, b)];
  };
  const [tensors1, w1] = half('lokr_w1', 4, 2, rank1);
  const [tensors2, w2] = half('lokr_w2', 8, 4, rank2);
  const lora = await read({ ...tensors1, ...tensors2, alpha: 5 });
  expectChanges(lora.transformer, {
    [MODULE]: elements(
      ROWS,
      COLUMNS,
      (i, j) => at(w1, Math.floor(i / 8), Math.floor(j / 4)) * at(w2, i % 8, j % 4) * scale,
    ),
  });
  expect(lora).toMatchObject({ dialects: ['lycoris', 'lokr'], warnings: [] });
  expect(lora.transformer.get(MODULE)!.rank).toBe(expectedRank);
});

test('a fused module as LoKr is split', async () => {
  const values = new Values(21);
  const [w1, w2] = [values.matrix(3, 2), values.matrix(8, 4)];
  const file = await writeTensors(folder.file('fused.safetensors'), {
    'lora_unet_double_blocks_0_txt_attn_qkv.lokr_w1': w1,
    'lora_unet_double_blocks_0_txt_attn_qkv.lokr_w2': w2,
  });
  const rows = (row: number) => elements(8, 8, (i, j) => at(w1, row, Math.floor(j / 4)) * at(w2, i, j % 4));
  expectChanges((await readLora(file, TARGET)).transformer, {
    'transformer_blocks.0.attn.add_q_proj': rows(0),
    'transformer_blocks.0.attn.add_k_proj': rows(1),
    'transformer_blocks.0.attn.add_v_proj': rows(2),
  });
});

const QKV = 'lora_unet_double_blocks_0_img_attn_qkv';
const Q = 'transformer.transformer_blocks.0.attn.to_q';
const D = HIDDEN;
const own = new Values(23);

function plain(stem: string, ends: readonly [string, string], rows: number): Tensors {
  return { [stem + ends[0]]: own.matrix(2, D), [stem + ends[1]]: own.matrix(rows, 2) };
}

const kohya = (): Tensors => plain(QKV, ['.lora_down.weight', '.lora_up.weight'], 3 * D);
const peft = (): Tensors => plain(Q, ['.lora_A.weight', '.lora_B.weight'], D);
const loha = (stem: string, rows = 3 * D): Record<string, Matrix> => ({
  [`${stem}.hada_w1_a`]: own.matrix(rows, 2),
  [`${stem}.hada_w1_b`]: own.matrix(2, D),
  [`${stem}.hada_w2_a`]: own.matrix(rows, 2),
  [`${stem}.hada_w2_b`]: own.matrix(2, D),
});

/** What is wrong, the tensors, the code, and what the message says. */
test.each<[string, Tensors, 'lora_invalid' | 'lora_unsupported', ...string[]]>([
  ['two algorithms for one module', { ...kohya(), ...loha(QKV) }, 'lora_invalid', 'loha', QKV],
  ['LoHa with a missing quarter', { ...loha(QKV), [`${QKV}.hada_w2_b`]: 1 }, 'lora_invalid', 'hada_w2_b'],
  [
    'LoHa of two shapes',
    { ...loha(QKV), [`${QKV}.hada_w2_a`]: own.matrix(D, 2) },
    'lora_invalid',
    'hada_w2_a',
    'alike',
  ],
  [
    'LoKr both whole and as a product',
    {
      [`${QKV}.lokr_w1`]: own.matrix(3, 2),
      [`${QKV}.lokr_w1_a`]: own.matrix(3, 1),
      [`${QKV}.lokr_w1_b`]: own.matrix(1, 2),
      [`${QKV}.lokr_w2`]: own.matrix(8, 4),
    },
    'lora_invalid',
    `'${QKV}'`,
    'both whole and as a product',
  ],
  [
    'LoKr of two ranks',
    {
      [`${QKV}.lokr_w1_a`]: own.matrix(3, 1),
      [`${QKV}.lokr_w1_b`]: own.matrix(1, 2),
      [`${QKV}.lokr_w2_a`]: own.matrix(8, 2),
      [`${QKV}.lokr_w2_b`]: own.matrix(2, 4),
    },
    'lora_invalid',
    'ranks 1 and 2',
  ],
  [
    'LoKr of another shape',
    { [`${QKV}.lokr_w1`]: own.matrix(3, 2), [`${QKV}.lokr_w2`]: own.matrix(8, 5) },
    'lora_unsupported',
    `'${QKV}'`,
    '[8, 10]',
    '[8, 8]',
  ],
  [
    'LoKr without its second half',
    { [`${QKV}.lokr_w1`]: own.matrix(3, 2) },
    'lora_invalid',
    `the w2 matrix of '${QKV}'`,
  ],
  [
    'DoRA of LyCORIS',
    { ...kohya(), [`${QKV}.dora_scale`]: own.matrix(1, D) },
    'lora_unsupported',
    `${QKV}.dora_scale`,
    'DoRA',
  ],
  [
    'DoRA of PEFT',
    { ...peft(), [`${Q}.lora_magnitude_vector`]: own.matrix(1, D) },
    'lora_unsupported',
    `${Q}.lora_magnitude_vector`,
    'DoRA',
  ],
  ['OFT', { [`${QKV}.oft_blocks`]: own.matrix(2, 2) }, 'lora_unsupported', `${QKV}.oft_blocks`, 'OFT'],
  ['GLoRA', { [`${QKV}.a1.weight`]: own.matrix(2, 2) }, 'lora_unsupported', `${QKV}.a1.weight`, 'GLoRA'],
  [
    'Tucker form',
    { ...kohya(), [`${QKV}.lora_mid.weight`]: own.matrix(2, 2) },
    'lora_unsupported',
    'lora_mid',
    'convolutions',
  ],
])('refused: %s', async (_, tensors, code, ...says) => {
  const error = await rejection(
    readLora(await writeTensors(folder.file('refused.safetensors'), tensors), TARGET),
  );
  expect(error.code).toBe(code);
  for (const text of says) expect(error.message).toContain(text);
});

test('a small file that unfolds beyond the limit is refused before it is unfolded', async () => {
  const values = new Values(22);
  const file = await writeTensors(folder.file('bomb.safetensors'), {
    [`${STEM}.lokr_w1`]: values.matrix(256, 256),
    [`${STEM}.lokr_w2`]: values.matrix(256, 256),
  });
  const error = await rejection(readLora(file, null));
  expect(error).toMatchObject({ code: 'lora_unsupported', details: { found: 2 ** 35, allowed: 2 ** 32 } });
  expect((await rejection(readLora(file, null, { maxBytes: 1000 }))).details).toMatchObject({
    allowed: 1000,
  });
});
