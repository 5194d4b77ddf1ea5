import { temporaryFolder } from '../checkpoint/testing.ts';
import { readLora } from './read.ts';
import { expectChanges, product, rowsOf, TARGET, type Tensors, Values, writeTensors } from './testing.ts';

const folder = temporaryFolder();

const TO_Q = 'transformer_blocks.1.attn.to_q';
const PROJ_OUT = 'single_transformer_blocks.0.proj_out';
const FC1 = 'text_model.encoder.layers.1.mlp.fc1';

function shapeOf(module: string): readonly [number, number] {
  return (TARGET.transformer.get(module) ?? TARGET.clip.get(module))!;
}

test.each([
  ['lora_A.weight', 'lora_B.weight'],
  ['lora_A.default.weight', 'lora_B.default.weight'],
  ['lora_A', 'lora_B'],
  ['lora.down.weight', 'lora.up.weight'],
  ['lora_linear_layer.down.weight', 'lora_linear_layer.up.weight'],
])('keys that end in %s and %s', async (downEnd, upEnd) => {
  const values = new Values(1);
  const pair = values.pair(shapeOf(TO_Q), 3);
  const clip = values.pair(shapeOf(FC1), 2);
  const file = await writeTensors(folder.file('peft.safetensors'), {
    [`transformer.${TO_Q}.${downEnd}`]: pair.down,
    [`transformer.${TO_Q}.${upEnd}`]: pair.up,
    [`text_encoder.${FC1}.${downEnd}`]: clip.down,
    [`text_encoder.${FC1}.${upEnd}`]: clip.up,
  });
  const lora = await readLora(file, TARGET);
  expect(lora).toMatchObject({ dialects: ['peft'], warnings: [] });
  expectChanges(lora.transformer, { [TO_Q]: product(pair.up, pair.down) });
  expectChanges(lora.clip, { [FC1]: product(clip.up, clip.down) });
});

test('every linear module of the model, with ranks and alphas of their own', async () => {
  const values = new Values(2);
  const tensors: Tensors = {};
  const expected = { transformer: {} as Tensors, clip: {} as Tensors };
  const modules = new Map([...TARGET.transformer].filter(([name]) => !name.startsWith('norm_out.')));
  modules.set('norm_out.linear', [16, 8]);
  for (const [part, prefix, shapes] of [
    ['transformer', 'transformer.', modules],
    ['clip', 'text_encoder.', TARGET.clip],
  ] as const) {
    let index = 0;
    for (const [module, shape] of shapes) {
      const rank = 1 + (index % 4);
      const alpha = [undefined, 2, 0.5][index++ % 3];
      const { down, up } = values.pair(shape, rank);
      Object.assign(tensors, {
        [`${prefix}${module}.lora_A.weight`]: down,
        [`${prefix}${module}.lora_B.weight`]: up,
        ...(alpha !== undefined && { [`${prefix}${module}.alpha`]: alpha }),
      });
      const change = product(up, down, alpha === undefined ? 1 : alpha / rank);
      if (module !== 'norm_out.linear') expected[part][module] = change;
      else
        Object.assign(expected[part], {
          'norm_out.linear_scale': rowsOf(change, 0, 8),
          'norm_out.linear_shift': rowsOf(change, 8, 16),
        });
    }
  }
  const lora = await readLora(await writeTensors(folder.file('all.safetensors'), tensors), TARGET);
  expect(lora.warnings).toEqual([]);
  expectChanges(lora.transformer, expected.transformer as Parameters<typeof expectChanges>[1]);
  expectChanges(lora.clip, expected.clip as Parameters<typeof expectChanges>[1]);
  expect(lora.transformer.size).toBe(TARGET.transformer.size);
});

test.each(['', 'transformer.', 'base_model.model.', 'diffusion_model.'])(
  'paths of diffusers behind the prefix "%s"',
  async (prefix) => {
    const { down, up } = new Values(3).pair(shapeOf(PROJ_OUT), 2);
    const file = await writeTensors(folder.file('prefix.safetensors'), {
      [`${prefix}${PROJ_OUT}.lora_A.weight`]: down,
      [`${prefix}${PROJ_OUT}.lora_B.weight`]: up,
    });
    expectChanges((await readLora(file, TARGET)).transformer, { [PROJ_OUT]: product(up, down) });
  },
);
