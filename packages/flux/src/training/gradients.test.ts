import { goldens, openTiny } from '../../../../test/golden/support.ts';
import { LoraGradients, type LoraParameter, type TrainingSample } from './gradients.ts';
import { targetModules, type TrainingTargets } from './targets.ts';

/** Deterministic values in -1..1 without a pattern that a bug could hide behind. */
const noise = (count: number, seed: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => {
    const x = Math.sin((i + 1) * 12.9898 + seed * 78.233) * 43_758.5453;
    return 2 * (x - Math.floor(x)) - 1;
  });

async function setUp(targets: TrainingTargets) {
  const { opened, locator } = await openTiny('tiny-dev');
  const golden = await goldens('tiny-dev');
  const get = async (key: string) => (await golden.get(`transformer/0/${key}`)).data;
  const [first] = golden.json['transformer'] as [{ sigma: number; rows: number; columns: number }];
  const rank = 4;
  const spec = { transformer: opened.transformer.spec, clip: opened.clip.spec };
  const parameters = targetModules(spec, targets).map((target, i): LoraParameter => {
    const down = noise(rank * target.inFeatures, i).map((value) => value * 0.2);
    const up = noise(target.outFeatures * rank, i + 0.5).map((value) => value * 0.1);
    const [downGradient, upGradient] = [new Float32Array(down.length), new Float32Array(up.length)];
    return { ...target, rank, scale: 2, down, up, downGradient, upGradient };
  });
  const noisy = await get('hidden_states');
  const sample: TrainingSample = {
    noisy,
    target: noise(noisy.length, 99),
    sigma: first.sigma,
    guidance: 1,
    text: await get('encoder_hidden_states'),
    pooled: await get('pooled'),
    grid: { height: first.rows, width: first.columns },
  };
  const gradients = await LoraGradients.load(opened.transformer.spec, locator('transformer'), parameters, {});
  return { gradients, parameters, sample };
}

test.each<[TrainingTargets, number]>([
  ['attention', 25],
  ['all', 39],
])('%s: gradients are the slopes of the loss', async (targets, modules) => {
  const { gradients, parameters, sample } = await setUp(targets);
  expect(parameters).toHaveLength(modules);
  const loss = await gradients.loss(sample, 1);
  expect(await gradients.loss(sample)).toBeCloseTo(loss, 6);

  for (const side of ['down', 'up'] as const) {
    for (const parameter of parameters) {
      const values = parameter[side];
      const slope = parameter[`${side}Gradient`];
      // Along its own gradient, where the loss changes most and rounding matters least.
      const norm = Math.sqrt(slope.reduce((sum, value) => sum + value * value, 0));
      const step = 2e-2;
      const original = values.slice();
      const at = async (t: number): Promise<number> => {
        for (let i = 0; i < values.length; i++) values[i] = original[i]! + (t * slope[i]!) / norm;
        return gradients.loss(sample);
      };
      const numeric = ((await at(step)) - (await at(-step))) / (2 * step);
      values.set(original);
      const name = `${parameter.module}.${side}`;
      expect({ name, relative: Math.abs(numeric / norm - 1) < 0.02 }).toEqual({ name, relative: true });
    }
  }
  await gradients.release();
});

test('gradients add up over samples and follow the weight', async () => {
  const { gradients, parameters, sample } = await setUp('attention');
  await gradients.loss(sample, 1);
  const once = parameters.map(({ upGradient }) => upGradient.slice());
  await gradients.loss(sample, 0.5);
  parameters.forEach(({ upGradient }, i) =>
    upGradient.forEach((value, j) => expect(value).toBeCloseTo(once[i]![j]! * 1.5, 4)),
  );
  await gradients.release();
});
