import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import sharp from 'sharp';
import type { ModelFiles } from '../../packages/flux/src/checkpoint/model-files.ts';
import type { Style } from '../../packages/flux/src/lora/types.ts';
import type { Variant } from '../../packages/flux/src/lora/variants.ts';
import { FluxModel } from '../../packages/flux/src/model.ts';
import { type EngineRequest, generate } from '../../packages/flux/src/pipeline.ts';
import { chooseDevice } from '../../packages/flux/src/runtime/provider.ts';
import { formatPlan } from '../../packages/flux/src/runtime/residency.ts';
import type { Provider } from '../../packages/flux/src/runtime/session.ts';
import { StreamedT5 } from '../../packages/flux/src/text/streamed-t5.ts';
import { NO_ADAPTATION } from '../../packages/flux/src/transformer/parts.ts';
import { Transformer } from '../../packages/flux/src/transformer/transformer.ts';
import { FIXTURES, goldens, maxAbsError, openTiny, rms, tinyModel, TINY_MODELS } from '../golden/support.ts';

/*
 * npm run test:gpu: the golden tests on a device, whose fp16 arithmetic differs from the reference's fp32. Each stage of
 * the tiny models is compared with diffusers, with all of the model resident and with all of it streamed; the bundled
 * model's pictures with those of diffusers. Ends with 1 when a stage is out of bounds.
 */

/** Largest and mean difference, over the rms of what is expected. */
const BOUNDS = { max: 3e-2, mean: 5e-3 };
type Goldens = Awaited<ReturnType<typeof goldens>>;

interface TransformerCase {
  sigma: number;
  guidance: number;
  rows: number;
  columns: number;
}

interface LoraCase {
  name: string;
  files: { file: string; weight: number }[];
  tensors: Record<string, unknown>;
  /** Of a base in another format. */
  base?: string;
}

const { values } = parseArgs({ options: { provider: { type: 'string', default: 'auto' } } });
const device = await chooseDevice(values.provider as Provider | 'auto');
console.log(`${device.provider}: ${device.name ?? 'the processor'} (${device.reason})`);
const cacheDir = await mkdtemp(join(tmpdir(), 'atelier-gpu-'));
let failures = 0;

try {
  for (const name of TINY_MODELS) {
    await stages(name);
    await streamed(name);
  }
  await pictures();
} finally {
  await rm(cacheDir, { recursive: true, force: true });
}
console.log(failures === 0 ? 'all within bounds' : `${failures} out of bounds`);
process.exit(failures === 0 ? 0 : 1);

function compare(stage: string, found: Float32Array, expected: Float32Array): void {
  const scale = Math.max(rms(expected), 1e-6);
  const max = maxAbsError(found, expected) / scale;
  const mean =
    expected.reduce((sum, value, i) => sum + Math.abs(found[i]! - value), 0) / expected.length / scale;
  const isClose = max <= BOUNDS.max && mean <= BOUNDS.mean;
  if (!isClose) failures++;
  console.log(
    `  ${stage.padEnd(44)} max ${max.toExponential(1)}  mean ${mean.toExponential(1)}${isClose ? '' : '  OUT OF BOUNDS'}`,
  );
}

async function load(name: string, files: ModelFiles, maxSequenceLength: number): Promise<FluxModel> {
  const model = await FluxModel.load({ name, files, cacheDir, maxSequenceLength, device });
  console.log(`\n${name}${model.residency ? `\n${formatPlan(model.residency)}` : ''}`);
  return model;
}

async function stages(name: string): Promise<void> {
  const { files, maxSequenceLength } = await tinyModel(name);
  const model = await load(name, files, maxSequenceLength);
  const golden = await goldens(name);
  const { text } = await model.variant([]);
  const tokens = golden.json['tokens'] as { prompt: string }[];
  for (const index of golden.json['encoded'] as number[]) {
    const encoded = await text.encode(tokens[index]!.prompt);
    compare(`T5, prompt ${index}`, encoded.text, (await golden.get(`t5/${index}/last_hidden_state`)).data);
  }
  for (const index of [0, 1])
    compare(
      `transformer, case ${index}`,
      await velocity(model, [], golden, index),
      (await golden.get(`transformer/${index}/output`)).data,
    );
  if (name === 'tiny-dev') await styled(model, golden);

  const latent = await golden.get('vae/decode/latent');
  const [, channels, height, width] = latent.shape as [number, number, number, number];
  const { scalingFactor, shiftFactor } = model.vaeSpec;
  const scaled = latent.data.map((value) => (value - shiftFactor) * scalingFactor);
  const decoded = await model.decode(scaled, { channels, height, width });
  compare('autoencoder, decoded', decoded, (await golden.get('vae/decode/image')).data);

  const latents: Float32Array[] = [];
  for await (const event of generate(model, golden.json['txt2img'] as EngineRequest))
    if (event.phase === 'denoise') latents.push(event.latents);
  compare(
    `text to image, latents after ${latents.length} steps`,
    latents.at(-1)!,
    (await golden.get(`txt2img/latents.${latents.length - 1}`)).data,
  );
  await model.release();
}

/** T5 and both halves of the transformer with their weights as inputs. */
async function streamed(name: string): Promise<void> {
  const { opened, locator } = await openTiny(name);
  const golden = await goldens(name);
  const session = { provider: device.provider };
  console.log(`\n${name}, streamed`);
  const t5 = new StreamedT5(opened.t5.spec, locator('t5'), 'float16', session);
  const tokens = golden.json['tokens'] as { t5: number[] }[];
  for (const index of golden.json['encoded'] as number[])
    compare(
      `T5, prompt ${index}`,
      await t5.hidden(tokens[index]!.t5),
      (await golden.get(`t5/${index}/last_hidden_state`)).data,
    );
  const plan = { conditioner: 'streamed', tokenPath: 'streamed', compute: 'float16' } as const;
  const { spec } = opened.transformer;
  const transformer = await Transformer.load(spec, locator('transformer'), session, new Set(), plan);
  for (const index of [0, 1])
    compare(
      `transformer, case ${index}`,
      await velocityOf({ transformer, adaptation: NO_ADAPTATION }, golden, index),
      (await golden.get(`transformer/${index}/output`)).data,
    );
  await transformer.release();
}

async function velocity(
  model: FluxModel,
  styles: readonly Style[],
  golden: Goldens,
  index: number,
): Promise<Float32Array> {
  return velocityOf(await model.variant(styles), golden, index);
}

async function velocityOf(
  { transformer, adaptation }: Omit<Variant, 'text'>,
  golden: Goldens,
  index: number,
): Promise<Float32Array> {
  const { sigma, guidance, rows, columns } = (golden.json['transformer'] as TransformerCase[])[index]!;
  const get = async (key: string) => (await golden.get(`transformer/${index}/${key}`)).data;
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
  return transformer.velocity(await get('hidden_states'), conditioning, 0);
}

/** Every LoRA of the goldens that changes the transformer, one or several at a time. */
async function styled(model: FluxModel, base: Goldens): Promise<void> {
  const golden = await goldens('lora');
  for (const { name, files, tensors } of (golden.json['cases'] as LoraCase[]).filter((of) => !of.base)) {
    const key = Object.keys(tensors).find((tensor) => !tensor.includes('/pooled'));
    if (key === undefined) continue;
    const styles = files.map(({ file, weight }) => ({
      file: join(FIXTURES, 'lora', file),
      key: file,
      weight,
    }));
    compare(`LoRA, ${name}`, await velocity(model, styles, base, 0), (await golden.get(key)).data);
  }
}

async function pictures(): Promise<void> {
  const folder = join(FIXTURES, '../../../models/mini');
  const index = JSON.parse(await readFile(join(folder, 'model_index.json'), 'utf8')) as {
    max_sequence_length: number;
  };
  const files = {
    transformer: join(folder, 'transformer.safetensors'),
    vae: join(folder, 'ae.safetensors'),
    textEncoder: join(folder, 'text_encoder'),
    textEncoder2: join(folder, 'text_encoder_2'),
    tokenizer: join(folder, 'tokenizer'),
    tokenizer2: join(folder, 'tokenizer_2'),
    scheduler: join(folder, 'scheduler'),
  };
  const model = await load('mini', files, index.max_sequence_length);
  type PictureCase = EngineRequest & { file: string };
  const cases = JSON.parse(await readFile(join(FIXTURES, 'mini/cases.json'), 'utf8')) as PictureCase[];
  for (const { file, ...request } of cases) {
    const pipeline = generate(model, request);
    let next = await pipeline.next();
    while (!next.done) next = await pipeline.next();
    const expected = await sharp(join(FIXTURES, 'mini', file))
      .removeAlpha()
      .raw()
      .toBuffer();
    const found = next.value.pixels;
    const mean = expected.reduce((sum, value, i) => sum + Math.abs(found[i]! - value), 0) / expected.length;
    console.log(
      `  ${request.prompt.padEnd(44)} max ${maxAbsError(found, expected)}/255  mean ${mean.toFixed(2)}/255`,
    );
  }
  await model.release();
}
