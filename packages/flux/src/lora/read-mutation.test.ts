import { writeFileSync } from 'node:fs';
import { FluxError } from '../errors.ts';
import { generator, pick, type Random, temporaryFolder } from '../checkpoint/testing.ts';
import { readLora } from './read.ts';
import { decode, encode, energyOf, type File, squares, type Tensor } from './testing-oracle.ts';
import { changeOf, HIDDEN as D, MLP, TARGET, Values } from './testing.ts';
import type { Lora } from './types.ts';

const folder = temporaryFolder();

const values = new Values(50);
const matrix = (rows: number, columns: number): Tensor => ({
  shape: [rows, columns],
  data: values.matrix(rows, columns).data,
});
const scalar = (value: number): Tensor => ({ shape: [], data: Float32Array.of(value) });

/** Sound files of one or two modules each. */
const FILES: readonly File[] = [
  {
    tensors: new Map([
      ['transformer.transformer_blocks.0.attn.to_q.lora_A.weight', matrix(2, D)],
      ['transformer.transformer_blocks.0.attn.to_q.lora_B.weight', matrix(D, 2)],
      ['transformer.norm_out.linear.lora_A.weight', matrix(2, D)],
      ['transformer.norm_out.linear.lora_B.weight', matrix(2 * D, 2)],
    ]),
    config: { 'transformer.r': 2, 'transformer.lora_alpha': 4, 'transformer.use_rslora': false },
  },
  {
    tensors: new Map([
      ['lora_unet_double_blocks_1_img_attn_qkv.lora_down.weight', matrix(3, D)],
      ['lora_unet_double_blocks_1_img_attn_qkv.lora_up.weight', matrix(3 * D, 3)],
      ['lora_unet_double_blocks_1_img_attn_qkv.alpha', scalar(4)],
      ['lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight', matrix(1, 8)],
      ['lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight', matrix(16, 1)],
    ]),
  },
  {
    tensors: new Map([
      ['diffusion_model.single_blocks.0.linear1.lora_down.weight', matrix(2, D)],
      ['diffusion_model.single_blocks.0.linear1.lora_up.weight', matrix(3 * D + MLP, 2)],
      ['diffusion_model.img_in.lora_A.weight', matrix(1, 4)],
      ['diffusion_model.img_in.lora_B.weight', matrix(D, 1)],
      ['double_blocks.1.processor.proj_lora2.down.weight', matrix(1, D)],
      ['double_blocks.1.processor.proj_lora2.up.weight', matrix(D, 1)],
    ]),
  },
  {
    tensors: new Map([
      ['lycoris_transformer_blocks_0_attn_to_k.hada_w1_a', matrix(D, 2)],
      ['lycoris_transformer_blocks_0_attn_to_k.hada_w1_b', matrix(2, D)],
      ['lycoris_transformer_blocks_0_attn_to_k.hada_w2_a', matrix(D, 2)],
      ['lycoris_transformer_blocks_0_attn_to_k.hada_w2_b', matrix(2, D)],
      ['lycoris_transformer_blocks_0_attn_to_k.alpha', scalar(1)],
    ]),
  },
  {
    tensors: new Map([
      ['lora_transformer_proj_out.lokr_w1', matrix(2, 2)],
      ['lora_transformer_proj_out.lokr_w2_a', matrix(2, 1)],
      ['lora_transformer_proj_out.lokr_w2_b', matrix(1, 4)],
      ['lora_transformer_proj_out.alpha', scalar(2)],
    ]),
  },
];

const WORDS = [
  'transformer.',
  'diffusion_model.',
  'lora_unet_',
  'lora_te1_',
  'lora_te3_',
  'lycoris_',
  'text_encoder.',
  '',

  '.lora_A.weight',
  '.lora_B.weight',
  '.lora_down.weight',
  '.lora_up.weight',
  '.alpha',
  '.diff_b',
  '.dora_scale',

  'hada_w1_a',
  'hada_w2_b',
  'lokr_w1',
  'lokr_w2',
  'lokr_w2_a',
  'to_q',
  'to_k',
  'img',
  'txt',
  'qkv',
  'proj',
  '0',
  '1',
];
/** Prefixes that may stand for each other. */
const PREFIXES = [
  ['transformer.', 'diffusion_model.', 'base_model.model.'],
  ['lycoris_', 'lora_transformer_'],
  ['lora_te1_', 'lora_te_'],
];
const NUMBERS = [Number.NaN, Infinity, -Infinity, 3e38, -1e30, 1e-40, 0, -0, 1, -2];

function mutate(random: Random, file: File): File {
  const tensors = new Map(
    [...file.tensors].map(([name, { shape, data }]) => [name, { shape: [...shape], data }]),
  );
  const mutant: File = { tensors, ...(file.config && { config: { ...file.config } }) };
  const name = pick(random, [...tensors.keys()]);
  const tensor = tensors.get(name)!;
  switch (random(8)) {
    case 0:
      tensors.delete(name);
      break;
    case 1: {
      // A word of the key becomes another.
      const found = WORDS.filter((word) => word && name.includes(word));
      tensors.delete(name);
      tensors.set(
        name.replace(found.length > 0 ? pick(random, found) : name[0]!, pick(random, WORDS)),
        tensor,
      );
      break;
    }
    case 2:
      tensors.set(
        name.replace(pick(random, WORDS), pick(random, WORDS)),
        matrix(1 + random(9), 1 + random(9)),
      );
      break;
    case 3: {
      const shape = [...tensor.shape, ...(random(4) ? [] : [1])].map((size) =>
        random(2) ? size : random(2 * size + 1),
      );
      if (random(3) === 0) shape.reverse();
      const count = shape.reduce((product, size) => product * size, 1);
      tensors.set(name, { shape, data: values.matrix(1, count).data });
      break;
    }
    case 4: {
      const data = Float32Array.from(tensor.data);
      if (random(4)) data[random(data.length)] = pick(random, NUMBERS);
      else data.fill(pick(random, NUMBERS));
      tensors.set(name, { shape: tensor.shape, data });
      break;
    }
    case 5: {
      // All keys of a module become those of another.
      const [from, to] = [pick(random, WORDS), pick(random, WORDS)];
      return {
        ...mutant,
        tensors: new Map([...tensors].map(([key, each]) => [from ? key.replace(from, to) : key, each])),
      };
    }
    case 6: {
      // All keys with a prefix once more with another.
      const family = pick(random, PREFIXES);
      for (const [key, each] of file.tensors) {
        const from = family.find((prefix) => key.startsWith(prefix));
        if (from) tensors.set(key.replace(from, pick(random, family)), each);
      }
      break;
    }
    default:
      if (mutant.config) {
        mutant.config[pick(random, Object.keys(mutant.config))] = pick(random, [
          1,
          2,
          3,
          8,
          0,
          -1,
          null,
          'x',
          true,
          {},
        ]);
      }
  }
  return random(3) ? mutant : mutate(random, mutant);
}

/** What does not add up in an accepted file; empty when all does. */
function faults(file: File, lora: Lora): string[] {
  const found: string[] = [];
  let energy = 0;
  for (const part of ['transformer', 'clip'] as const) {
    for (const [key, delta] of lora[part]) {
      const { module, rank, inFeatures, outFeatures, up, down } = delta;
      const shape = TARGET[part].get(module);
      if (key !== module || shape?.[0] !== outFeatures || shape[1] !== inFeatures)
        found.push(`shape of ${module}`);
      if (up.length !== outFeatures * rank || down.length !== rank * inFeatures || rank < 1)
        found.push(module);
      if (![...up, ...down].every(Number.isFinite)) found.push(`values of ${module}`);
      energy += squares(changeOf(delta).data);
    }
  }
  const expected = energyOf(file);
  // Only infinities may differ: fp32 holds less than the sum in fp64.
  if (Number.isFinite(energy) && Math.abs(energy - expected) > 1e-3 * expected)
    found.push(`${energy}, not ${expected}`);
  return found;
}

test('thousands of mangled files are refused with a coded error, or are what they say', async () => {
  const path = folder.file('mutant.safetensors');
  const random = generator(5);
  const outcomes = { refused: 0, accepted: 0 };
  const failures: unknown[] = [];
  for (let i = 0; i < 2500; i++) {
    const mutant = mutate(random, pick(random, FILES));
    writeFileSync(path, encode(mutant));
    const target = random(4) ? TARGET : null;
    const outcome = await readLora(path, target).catch((error: unknown) => error);
    if (outcome instanceof FluxError) {
      outcomes.refused++;
      if (!/^lora_(invalid|unsupported)$/.test(outcome.code) || !outcome.message.startsWith(`${path}: `))
        failures.push({ keys: [...mutant.tensors.keys()], outcome });
    } else if (outcome instanceof Error) {
      failures.push({ keys: [...mutant.tensors.keys()], outcome });
    } else {
      outcomes.accepted++;
      const wrong = faults(mutant, outcome as Lora).filter((fault) => target || !fault.startsWith('shape'));
      if (wrong.length > 0) failures.push({ keys: [...mutant.tensors.keys()], wrong });
    }
  }
  expect(failures).toEqual([]);
  // Both must happen, or the mutations are too weak or too strong to show anything.
  expect(outcomes.refused).toBeGreaterThan(1250);
  expect(outcomes.accepted).toBeGreaterThan(250);
});

/** Changes single bytes of the header or of the length before it, or cuts or extends the file. */
function mangle(random: Random, bytes: Buffer): Buffer {
  const header = 8 + Number(bytes.readBigUInt64LE(0));
  const copy = Buffer.from(bytes);
  switch (random(8)) {
    case 0:
      return copy.subarray(0, random(copy.length));
    case 1:
      return Buffer.concat([copy, Buffer.alloc(1 + random(9))]);
    default:
      for (let i = random(3); i >= 0; i--) copy[random(header)] = pick(random, BYTES);
      return copy;
  }
}

const BYTES = [...Buffer.from('{}[]",:0123489-.eAB_')];

test('a thousand mangled headers are refused with a coded error, or are what they say', async () => {
  const path = folder.file('header.safetensors');
  const random = generator(6);
  const failures: unknown[] = [];
  let accepted = 0;
  for (let i = 0; i < 1000; i++) {
    const bytes = mangle(random, encode(pick(random, FILES)));
    writeFileSync(path, bytes);
    const outcome = await readLora(path, TARGET).catch((error: unknown) => error);
    if (outcome instanceof FluxError) {
      if (!/^lora_(invalid|unsupported)$/.test(outcome.code)) failures.push(outcome);
    } else if (outcome instanceof Error) {
      failures.push(outcome);
    } else {
      accepted++;
      const wrong = faults(decode(bytes), outcome as Lora);
      if (wrong.length > 0) failures.push({ header: bytes.toString('latin1', 8, 400), wrong });
    }
  }
  expect(failures).toEqual([]);
  expect(accepted).toBeGreaterThan(10);
});
