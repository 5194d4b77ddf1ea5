import { rejection, temporaryFolder } from '../checkpoint/testing.ts';
import { compilePattern } from './module-patterns.ts';
import { readLora } from './read.ts';
import { changeOf, product, TARGET, Values, writeTensors } from './testing.ts';

const folder = temporaryFolder();

const TO_Q = 'transformer_blocks.0.attn.to_q';
const PROJ_OUT = 'proj_out';
const SINGLE_PROJ_OUT = 'single_transformer_blocks.0.proj_out';
const MODULES = [TO_Q, PROJ_OUT, SINGLE_PROJ_OUT];

interface Options {
  config?: Record<string, unknown>;
  prefix?: string;
  rank?: number;
  alpha?: number;
}

/** A file with a pair of each module of MODULES and this LoraConfig, and the pairs. */
async function write({ config, prefix = 'transformer.', rank = 2, alpha }: Options) {
  const values = new Values(40);
  const pairs = MODULES.map(
    (module) => [module, values.pair(TARGET.transformer.get(module)!, rank)] as const,
  );
  const tensors = pairs.flatMap(([module, { down, up }]) => [
    [`${prefix}${module}.lora_A.weight`, down] as const,
    [`${prefix}${module}.lora_B.weight`, up] as const,
    ...(alpha === undefined ? [] : [[`${prefix}${module}.alpha`, alpha] as const]),
  ]);
  const named = Object.entries(config ?? {}).map(([key, value]) => [prefix + key, value]);
  const metadata = { lora_adapter_metadata: JSON.stringify(Object.fromEntries(named)) };
  const file = await writeTensors(folder.file('metadata.safetensors'), Object.fromEntries(tensors), metadata);
  return { file, pairs };
}

/** The strength of each module of MODULES. */
async function scales(options: Options): Promise<number[]> {
  const { file, pairs } = await write(options);
  const { transformer } = await readLora(file, TARGET);
  return pairs.map(([module, { up, down }]) => {
    const plain = product(up, down).data;
    const at = plain.findIndex((value) => value !== 0);
    return changeOf(transformer.get(module)!).data[at]! / plain[at]!;
  });
}

test.each<[string, Options, number[]]>([
  ['none', {}, [1, 1, 1]],
  ['alpha / r', { config: { r: 2, lora_alpha: 8 } }, [4, 4, 4]],
  ['without a prefix, as a model alone is saved', { prefix: '', config: { r: 2, lora_alpha: 8 } }, [4, 4, 4]],
  ['rank-stabilized', { rank: 4, config: { r: 4, lora_alpha: 8, use_rslora: true } }, [4, 4, 4]],
  [
    'a pattern is the end of a path',
    { config: { r: 2, lora_alpha: 2, alpha_pattern: { proj_out: 6, to_q: 4 } } },
    [2, 3, 3],
  ],
  ['^ is its beginning', { config: { r: 2, lora_alpha: 2, alpha_pattern: { '^proj_out': 6 } } }, [1, 3, 1]],
  [
    'the first that matches counts',
    { config: { r: 2, lora_alpha: 2, alpha_pattern: { '.*\\.attn\\..*': 8, to_q: 4 } } },
    [4, 1, 1],
  ],
  [
    'ranks have patterns too',
    { config: { r: 7, lora_alpha: 2, rank_pattern: { proj_out: 2, '(attn|ff)\\.to_q': 2 } } },
    [1, 1, 1],
  ],
  ['alpha keys that say the same', { alpha: 8, config: { r: 2, lora_alpha: 8 } }, [4, 4, 4]],
])('strength by metadata: %s', async (_, options, expected) => {
  for (const [i, scale] of (await scales(options)).entries()) expect(scale).toBeCloseTo(expected[i]!, 5);
});

test.each<[string, Options, string, string]>([
  ['a rank that the matrices do not have', { config: { r: 3, lora_alpha: 3 } }, 'lora_invalid', 'has rank 2'],
  ['no rank', { config: { lora_alpha: 3 } }, 'lora_invalid', 'transformer.r undefined'],
  [
    'an alpha that is no number',
    { config: { r: 2, lora_alpha: '8' } },
    'lora_invalid',
    "transformer.lora_alpha '8'",
  ],
  [
    'another strength than an alpha key',
    { alpha: 4, config: { r: 2, lora_alpha: 8 } },
    'lora_invalid',
    'a strength of 2',
  ],
  [
    'another algorithm',
    { config: { r: 2, lora_alpha: 8, peft_type: 'LOHA' } },
    'lora_unsupported',
    'peft_type',
  ],
  ['DoRA', { config: { r: 2, lora_alpha: 8, use_dora: true } }, 'lora_unsupported', 'use_dora true'],
  [
    'a pattern that may take forever',
    { config: { r: 2, lora_alpha: 8, alpha_pattern: { '(.*)*x': 2 } } },
    'lora_unsupported',
    '(.*)*x',
  ],
  [
    'patterns without end',
    {
      config: {
        r: 2,
        lora_alpha: 8,
        alpha_pattern: Object.fromEntries(Array.from({ length: 5000 }, (_, i) => [`m${i}`, 1])),
      },
    },
    'lora_unsupported',
    'at most 4096',
  ],
])('refused metadata: %s', async (_, options, code, says) => {
  const { file } = await write(options);
  const error = await rejection(readLora(file, TARGET));
  expect(error.code).toBe(code);
  expect(error.message).toContain(says);
});

test('metadata about nothing in the file are left out with a warning', async () => {
  const { file } = await write({ prefix: 'diffusion_model.', config: { r: 2, lora_alpha: 8 } });
  const { warnings, transformer } = await readLora(file, TARGET);
  expect(warnings).toEqual(['Left out: metadata that describe none of the modules (lora_adapter_metadata).']);
  expect(transformer.size).toBe(MODULES.length);
});

test('metadata that are no JSON object', async () => {
  const { up, down } = new Values(41).pair([8, 8], 2);
  const file = await writeTensors(
    folder.file('json.safetensors'),
    { [`transformer.${TO_Q}.lora_A.weight`]: down, [`transformer.${TO_Q}.lora_B.weight`]: up },
    { lora_adapter_metadata: '[1]' },
  );
  expect((await rejection(readLora(file, TARGET))).code).toBe('lora_invalid');
});

test.each([
  '(a+)+',
  'a{1,9}',
  '[a-z]+',
  '(?=a)',
  '\\w+',
  '(a',
  'a.*b.*c.*d',
  '(.|a)*',
  '\\1',
  'x'.repeat(201) + '.*',
])('the pattern %s is beyond what is matched', (pattern) => {
  expect(compilePattern(pattern)).toBeUndefined();
});
