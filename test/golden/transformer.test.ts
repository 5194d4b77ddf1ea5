import { join } from 'node:path';
import { openModel } from '../../packages/flux/src/checkpoint/model-files.ts';
import { GraphSession } from '../../packages/flux/src/runtime/session.ts';
import { buildConditioner } from '../../packages/flux/src/transformer/conditioner.ts';
import { modulationLayout } from '../../packages/flux/src/transformer/modulation.ts';
import { ropeTable } from '../../packages/flux/src/transformer/rope.ts';
import { timestepEmbedding } from '../../packages/flux/src/transformer/timestep.ts';
import { buildTokenPath } from '../../packages/flux/src/transformer/token-path.ts';
import { Transformer } from '../../packages/flux/src/transformer/transformer.ts';
import {
  FIXTURES,
  goldens,
  maxAbsError,
  openTiny,
  rms,
  tinyModel,
  TINY_MODELS,
  TOLERANCE,
} from './support.ts';

interface Case {
  sigma: number;
  guidance: number;
  rows: number;
  columns: number;
}

describe.each(TINY_MODELS)('%s', (name) => {
  test('timestep and guidance embeddings', async () => {
    const golden = await goldens(name);
    const { opened } = await openTiny(name);
    const width = opened.transformer.spec.timestepDim;
    for (const kind of ['sigma', 'guidance']) {
      const values = await golden.get(`embed/${kind}`);
      const expected = await golden.get(`embed/${kind}_sinusoid`);
      const found = timestepEmbedding(values.data, width);
      values.data.forEach((value, row) => {
        // torch's vectorised exp may miss the nearest fp32 by one; as a frequency that is an angle of 1000 t / 2^24.
        const lastBit = (1000 * value) / 2 ** 24;
        const at = [row * width, (row + 1) * width] as const;
        const error = maxAbsError(found.subarray(...at), expected.data.subarray(...at));
        expect({ kind, value, close: error < TOLERANCE / 10 + lastBit }).toEqual({
          kind,
          value,
          close: true,
        });
      });
    }
  });

  test('rotary position embedding', async () => {
    const golden = await goldens(name);
    const { opened, maxSequenceLength } = await openTiny(name);
    const [first] = golden.json['transformer'] as [Case];
    const { cos, sin } = ropeTable(opened.transformer.spec, maxSequenceLength, first.rows, first.columns);
    // diffusers repeats each angle for both channels of its pair.
    const pairs = (values: Float32Array): Float32Array => values.filter((_, i) => i % 2 === 0);
    expect(maxAbsError(cos, pairs((await golden.get('rope/cos')).data))).toBeLessThan(1e-6);
    expect(maxAbsError(sin, pairs((await golden.get('rope/sin')).data))).toBeLessThan(1e-6);
  });

  test.each([0, 1])('every modulation and every block, case %d', async (index) => {
    const golden = await goldens(name);
    const { opened, locator, maxSequenceLength } = await openTiny(name);
    const { spec } = opened.transformer;
    const { sigma, guidance, rows, columns } = (golden.json['transformer'] as Case[])[index]!;
    const get = async (key: string) => (await golden.get(`transformer/${index}/${key}`)).data;

    const conditioner = await GraphSession.create(
      'conditioner',
      buildConditioner(spec, locator('transformer')),
    );
    const embed = (value: number) => ({
      data: timestepEmbedding(Float32Array.of(value), spec.timestepDim),
      dims: [1, spec.timestepDim],
    });
    const conditioned = await conditioner.run(
      {
        time: embed(sigma),
        pooled: { data: await get('pooled'), dims: [1, spec.pooledDim] },
        text: { data: await get('encoder_hidden_states'), dims: [maxSequenceLength, spec.jointDim] },
        ...(spec.guidanceEmbeds ? { guidance: embed(guidance) } : {}),
      },
      ['modulation', 'context'],
    );
    expect(maxAbsError(conditioned.context.data, await get('context_embedder'))).toBeLessThan(TOLERANCE);
    for (const slot of modulationLayout(spec).slots) {
      const expected = (await get(goldenModulation(slot.name))).slice();
      // diffusers stores the last modulation as scale, shift; this engine as shift, scale.
      if (slot.name === 'norm_out')
        expected.set([...expected.subarray(spec.hiddenSize), ...expected.subarray(0, spec.hiddenSize)]);
      slot.chunks.forEach((chunk, i) => {
        if (chunk !== 'scale') return;
        for (let c = i * spec.hiddenSize; c < (i + 1) * spec.hiddenSize; c++) expected[c]! += 1;
      });
      const found = conditioned.modulation.data.subarray(slot.offset, slot.offset + slot.size);
      expect({ slot: slot.name, close: maxAbsError(found, expected) < TOLERANCE }).toEqual({
        slot: slot.name,
        close: true,
      });
    }

    const probes = [
      ...Array.from({ length: spec.doubleBlocks }, (_, i) => [`double.${i}.img`, `double.${i}.txt`]).flat(),
      ...Array.from({ length: spec.singleBlocks }, (_, i) => `single.${i}`),
    ];
    const tokenPath = await GraphSession.create(
      'token-path',
      buildTokenPath(spec, locator('transformer'), { probes }),
    );
    const { cos, sin } = ropeTable(spec, maxSequenceLength, rows, columns);
    const angles = [maxSequenceLength + rows * columns, spec.headDim / 2];
    const found = await tokenPath.run(
      {
        latents: { data: await get('hidden_states'), dims: [rows * columns, spec.inChannels] },
        context: { data: conditioned.context.data, dims: [maxSequenceLength, spec.hiddenSize] },
        modulation: { data: conditioned.modulation.data, dims: [modulationLayout(spec).size] },
        cos: { data: cos, dims: angles },
        sin: { data: sin, dims: angles },
      },
      [...probes, 'velocity'],
    );
    for (const probe of [...probes, 'velocity']) {
      const expected = await get(probe === 'velocity' ? 'output' : probe);
      const scale = Math.max(rms(expected), 1);
      const error = maxAbsError(found[probe]!.data, expected) / scale;
      expect({ probe, close: error < TOLERANCE }).toEqual({ probe, close: true });
    }
    await conditioner.release();
    await tokenPath.release();
  });
});

describe('number formats of tiny-dev', () => {
  test.each(['fp16', 'bf16', 'fp8', 'fp8_scaled'])('%s', async (variant) => {
    const golden = await goldens('tiny-dev');
    const { files, maxSequenceLength } = await tinyModel('tiny-dev');
    const transformer = join(FIXTURES, 'tiny-dev', 'variants', `${variant}.safetensors`);
    const opened = await openModel({ ...files, transformer });
    const { spec, weights } = opened.transformer;
    const model = await Transformer.load(
      spec,
      { has: (weight) => weights.has(weight), locate: (weight) => weights.get(weight) },
      {},
    );
    const { sigma, guidance, rows, columns } = (golden.json['transformer'] as [Case])[0];
    const get = async (key: string) => (await golden.get(`transformer/0/${key}`)).data;
    const conditioning = await model.condition({
      text: await get('encoder_hidden_states'),
      pooled: await get('pooled'),
      guidance,
      sigmas: Float32Array.of(sigma, 0),
      grid: { height: rows, width: columns },
    });
    expect(conditioning.textTokens).toBe(maxSequenceLength);
    const velocity = await model.velocity(await get('hidden_states'), conditioning, 0);
    const expected = (await golden.get(`variants/${variant}/output`)).data;
    expect(maxAbsError(velocity, expected)).toBeLessThan(TOLERANCE);
    // The formats differ from each other by far more than the tolerance, so each shows that its own values were read.
    expect(maxAbsError(velocity, await get('output'))).toBeGreaterThan(TOLERANCE);
    await model.release();
  });
});

function goldenModulation(slot: string): string {
  const match = /^(single_)?transformer_blocks\.(\d+)\.norm(1|1_context)?$/.exec(slot);
  if (!match) return 'norm_out.mod';
  const [, single, block, stream] = match;
  if (single) return `single.${block}.mod`;
  return `double.${block}.${stream === '1_context' ? 'txt' : 'img'}_mod`;
}
