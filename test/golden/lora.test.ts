import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Style } from '../../packages/flux/src/lora/types.ts';
import { FluxModel } from '../../packages/flux/src/model.ts';
import { generate, type EngineRequest } from '../../packages/flux/src/pipeline.ts';
import type { Placement } from '../../packages/flux/src/runtime/placement.ts';
import { FIXTURES, goldens, maxAbsError, rms, tinyModel, TOLERANCE } from './support.ts';

interface StyledCase {
  name: string;
  /** A transformer of tiny-dev/variants; tiny-dev's own when absent. */
  base?: string;
  files: { file: string; weight: number }[];
  /** Names of the expected tensors. */
  tensors: Record<string, string>;
}

const LORAS = join(FIXTURES, 'lora');
const json = JSON.parse(readFileSync(join(LORAS, 'goldens.json'), 'utf8')) as {
  cases: StyledCase[];
  txt2img: EngineRequest & { files: StyledCase['files'] };
};

let cacheDir: string;
beforeAll(async () => {
  cacheDir = await mkdtemp(join(tmpdir(), 'atelier-lora-'));
});
afterAll(() => rm(cacheDir, { recursive: true }));

const PLACEMENTS: Placement[] = ['expand', 'in-place'];

describe.each(PLACEMENTS)('weights %s', (placement) => {
  let model: FluxModel;
  beforeAll(async () => {
    model = await load(placement);
  });
  afterAll(() => model.release());

  test.each(json.cases.filter(({ base }) => !base))('$name', (styled) => compare(model, styled));

  test('without a style, and at weight 0, the model is itself', async () => {
    const file = { file: 'peft.safetensors', weight: 0 };
    expect((await model.variant(stylesOf([file]))).transformer).toBe((await model.variant([])).transformer);
  });

  test('a styled picture is that of FluxPipeline, and the next one without styles is untouched', async () => {
    const { files, ...request } = json.txt2img;
    const golden = await goldens('lora');
    const styled = await latentsOf(model, { ...request, styles: stylesOf(files) });
    for (const [step, found] of styled.entries()) {
      const expected = (await golden.get(`txt2img/latents.${step}`)).data;
      const error = maxAbsError(found, expected) / Math.max(rms(expected), 1);
      expect({ step, close: error < TOLERANCE }).toEqual({ step, close: true });
    }
    const plain = await latentsOf(model, request);
    const expected = (await (await goldens('tiny-dev')).get(`txt2img/latents.${plain.length - 1}`)).data;
    expect(maxAbsError(plain.at(-1)!, expected) / Math.max(rms(expected), 1)).toBeLessThan(TOLERANCE);
  });

  test('the order of styles does not change a bit', async () => {
    const { files: _, ...request } = json.txt2img;
    const [a, b] = stylesOf([
      { file: 'peft.safetensors', weight: 0.7 },
      { file: 'kohya.safetensors', weight: 0.5 },
    ]) as [Style, Style];
    const [first, second] = [
      [a, b],
      [b, a],
    ];
    expect(await latentsOf(model, { ...request, styles: second })).toEqual(
      await latentsOf(model, { ...request, styles: first }),
    );
  });
});

describe('bases in narrow formats', () => {
  test.each(json.cases.filter(({ base }) => base))('$name', async (styled) => {
    const model = await load('in-place', styled.base);
    await compare(model, styled);
    await model.release();
  });
});

async function load(placement: Placement, base?: string): Promise<FluxModel> {
  const { files, maxSequenceLength } = await tinyModel('tiny-dev');
  const transformer = base ? join(FIXTURES, 'tiny-dev', 'variants', base) : files.transformer;
  return FluxModel.load({
    name: 'tiny',
    files: { ...files, transformer },
    maxSequenceLength,
    cacheDir,
    placement,
  });
}

function stylesOf(files: StyledCase['files']): Style[] {
  return files.map(({ file, weight }) => ({ file: join(LORAS, file), key: file, weight }));
}

/** Compares the transformer at case 0 of tiny-dev, and CLIP for the prompts that the case has values for. */
async function compare(model: FluxModel, styled: StyledCase): Promise<void> {
  const [base, golden] = [await goldens('tiny-dev'), await goldens('lora')];
  const { transformer, text, adaptation } = await model.variant(stylesOf(styled.files));
  const names = Object.keys(styled.tensors);
  expect(names.length).toBeGreaterThan(0);
  for (const name of names) {
    const expected = (await golden.get(name)).data;
    const [, kind, prompt] = name.slice(name.lastIndexOf(styled.name) + styled.name.length).split('/');
    let found: Float32Array;
    if (kind === 'pooled') {
      const tokens = base.json['tokens'] as { clip: number[] }[];
      found = await text.clipPooled(tokens[Number(prompt)]!.clip);
    } else {
      const get = async (key: string) => (await base.get(`transformer/0/${key}`)).data;
      const [first] = base.json['transformer'] as {
        sigma: number;
        guidance: number;
        rows: number;
        columns: number;
      }[];
      const { sigma, guidance, rows, columns } = first!;
      const conditioning = await transformer.condition(
        {
          text: await get('encoder_hidden_states'),
          pooled: await get('pooled'),
          guidance,
          sigmas: Float32Array.of(sigma, 0),
          grid: { height: rows, width: columns },
        },
        adaptation,
      );
      found = await transformer.velocity(await get('hidden_states'), conditioning, 0);
    }
    const error = maxAbsError(found, expected) / Math.max(rms(expected), 1);
    expect({ name, close: error < TOLERANCE }).toEqual({ name, close: true });
  }
}

async function latentsOf(model: FluxModel, request: EngineRequest): Promise<Float32Array[]> {
  const latents: Float32Array[] = [];
  for await (const event of generate(model, request))
    if (event.phase === 'denoise') latents.push(event.latents.slice());
  return latents;
}
