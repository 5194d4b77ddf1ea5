import { openSafetensors } from '../checkpoint/safetensors.ts';
import { rejection, temporaryFolder } from '../checkpoint/testing.ts';
import { type LoraFormat, writeLora } from './export.ts';
import { readLora } from './read.ts';
import { TARGET, Values } from './testing.ts';
import type { Lora, LoraDelta, ModuleShapes } from './types.ts';

const folder = temporaryFolder();

/** A LoRA of every `step`-th module, each of a rank of its own. */
function loraOf(step: number): Pick<Lora, 'transformer' | 'clip'> {
  const values = new Values(step);
  const deltas = (shapes: ModuleShapes): Map<string, LoraDelta> => {
    const picked = [...shapes].filter((_, i) => i % step === 0);
    return new Map(
      picked.map(([module, shape], i) => {
        const rank = 1 + (i % 5);
        const { up, down } = values.pair(shape, rank);
        const [outFeatures, inFeatures] = shape;
        return [module, { module, rank, inFeatures, outFeatures, up: up.data, down: down.data }];
      }),
    );
  };
  return { transformer: deltas(TARGET.transformer), clip: deltas(TARGET.clip) };
}

const byModule = (deltas: ReadonlyMap<string, LoraDelta>) =>
  [...deltas.values()].sort((a, b) => (a.module < b.module ? -1 : 1));

describe.each<LoraFormat>(['peft', 'kohya'])('%s', (format) => {
  test.each([1, 2, 3, 7])('what is written is read back to the last bit, every %d. module', async (step) => {
    const lora = loraOf(step);
    const file = folder.file(`${format}-${step}.safetensors`);
    await writeLora(file, lora, format);
    const read = await readLora(file, TARGET);
    expect(read).toMatchObject({ dialects: [format], warnings: [] });
    expect(byModule(read.transformer)).toEqual(byModule(lora.transformer));
    expect(byModule(read.clip)).toEqual(byModule(lora.clip));
  });

  test.each(['F16', 'BF16'] as const)('in %s values that it holds stay', async (dtype) => {
    const lora = loraOf(1);
    const file = folder.file(`${format}-${dtype}.safetensors`);
    await writeLora(file, lora, format, {}, dtype);
    expect(byModule((await readLora(file, TARGET)).transformer)).toEqual(byModule(lora.transformer));
  });
});

test('projections that share their input matrix share it in kohya form too', async () => {
  const values = new Values(4);
  const { down, up } = values.pair([24, 8], 2);
  const modules = ['to_q', 'to_k', 'to_v'].map((name) => `transformer_blocks.0.attn.${name}`);
  const transformer = new Map(
    modules.map((module, i) => {
      const own = up.data.subarray(i * 16, (i + 1) * 16);
      return [module, { module, rank: 2, inFeatures: 8, outFeatures: 8, down: down.data, up: own }];
    }),
  );
  const file = folder.file('shared.safetensors');
  await writeLora(file, { transformer, clip: new Map() }, 'kohya', { ss_output_name: 'ink' });
  const { tensors, metadata } = await openSafetensors(file);
  const key = 'lora_unet_double_blocks_0_img_attn_qkv';
  expect(Object.fromEntries([...tensors].map(([name, { shape }]) => [name, shape]))).toEqual({
    [`${key}.lora_down.weight`]: [2, 8],
    [`${key}.lora_up.weight`]: [24, 2],
    [`${key}.alpha`]: [],
  });
  expect(metadata).toEqual({ format: 'pt', ss_output_name: 'ink' });
});

test('PEFT form describes ranks and strengths to its loader', async () => {
  const delta = (module: string, rank: number): LoraDelta => {
    const [outFeatures, inFeatures] = TARGET.transformer.get(module)!;
    const { up, down } = new Values(5).pair([outFeatures, inFeatures], rank);
    return { module, rank, inFeatures, outFeatures, up: up.data, down: down.data };
  };
  const deltas = [
    delta('proj_out', 3),
    delta('x_embedder', 2),
    delta('norm_out.linear_shift', 1),
    delta('norm_out.linear_scale', 1),
  ];
  const file = folder.file('described.safetensors');
  await writeLora(
    file,
    { transformer: new Map(deltas.map((each) => [each.module, each])), clip: new Map() },
    'peft',
  );
  const { metadata } = await openSafetensors(file);
  expect(JSON.parse(metadata['lora_adapter_metadata']!)).toEqual({
    'transformer.peft_type': 'LORA',
    'transformer.r': 2,
    'transformer.lora_alpha': 2,
    'transformer.rank_pattern': { '^proj_out': 3 },
    'transformer.alpha_pattern': { '^proj_out': 3 },
    'transformer.target_modules': ['norm_out.linear', 'proj_out', 'x_embedder'],
  });
});

test('a value beyond the format is refused, and no file is left', async () => {
  const [outFeatures, inFeatures] = TARGET.transformer.get('x_embedder')!;
  const { up, down } = new Values(6).pair([outFeatures, inFeatures], 1);
  up.data[3] = 70_000;
  const delta = { module: 'x_embedder', rank: 1, inFeatures, outFeatures, up: up.data, down: down.data };
  const lora = { transformer: new Map([['x_embedder', delta]]), clip: new Map() };
  const file = folder.file('large.safetensors');
  const error = await rejection(writeLora(file, lora, 'peft', {}, 'F16'));
  expect(error.code).toBe('lora_unsupported');
  expect(error.message).toContain('transformer.x_embedder.lora_B.weight');
  expect((await rejection(readLora(file, null))).code).toBe('checkpoint_missing');
});
