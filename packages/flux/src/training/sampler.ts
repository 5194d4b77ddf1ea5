import type { OpenedModel } from '../checkpoint/model-files.ts';
import { composeDeltas } from '../lora/compose.ts';
import { withMergedWeights } from '../lora/merge.ts';
import { readLora } from '../lora/read.ts';
import { loraTarget } from '../lora/target.ts';
import type { Style } from '../lora/types.ts';
import { generate, type EngineImage, type PictureModel } from '../pipeline.ts';
import type { PlacedModel } from '../runtime/placement.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { PATCH } from '../sampling/latents.ts';
import type { EncodedText } from '../text/encoder.ts';
import { NO_ADAPTATION } from '../transformer/parts.ts';
import { Transformer } from '../transformer/transformer.ts';
import { Vae } from '../vae/vae.ts';

export interface SampleRequest {
  prompts: readonly string[];
  /** Of the first prompt; the i-th has seed + i. */
  seed: number;
  steps: number;
  guidance: number;
}

/** One picture with what it was made from. */
export interface Sample extends Pick<EngineImage, 'pixels' | 'width' | 'height' | 'seed'> {
  /** Position among the prompts. */
  index: number;
  prompt: string;
}

export interface SamplerParts {
  opened: OpenedModel;
  /** With the transformer in fp32. */
  placed: PlacedModel;
  session: SessionOptions;
  /** Embeddings of every prompt. */
  prompts: ReadonlyMap<string, EncodedText>;
}

type OpenModel = PictureModel & { release: () => Promise<void> };

/** Opens what draws with a LoRA, or without one: a model and the styles that it is asked for. */
type Open = (loraFile: string | null) => Promise<{ model: OpenModel; styles: Style[] }>;

/**
 * Draws what the LoRA of a checkpoint makes of some prompts, with the pipeline that draws jobs: the same file, seed
 * and size give the same bytes there. Models are in memory only while it draws, and no random number is taken from
 * the training's streams.
 */
export class Sampler {
  readonly #open: Open;

  constructor(open: Open) {
    this.#open = open;
  }

  /**
   * Yields each picture, and null between the steps of one, where the caller may stop.
   * @param side of the pictures, in pixels
   * @param loraFile null for the base model
   */
  async *draw(
    { prompts, seed, steps, guidance }: SampleRequest,
    side: number,
    loraFile: string | null,
  ): AsyncGenerator<Sample | null> {
    if (prompts.length === 0) return;
    const { model, styles } = await this.#open(loraFile);
    try {
      for (const [index, prompt] of prompts.entries()) {
        const request = { prompt, width: side, height: side, steps, guidance, seed: seed + index, styles };
        const pipeline = generate(model, request);
        let next = await pipeline.next();
        while (!next.done) {
          yield null;
          next = await pipeline.next();
        }
        const { pixels, width, height } = next.value;
        yield { index, prompt, seed: request.seed, width, height, pixels };
      }
    } finally {
      await model.release();
    }
  }
}

/** On the processor: transformer and autoencoder, the LoRA merged as jobs have it there, for prompts encoded before. */
export function hostSampler(parts: SamplerParts): Sampler {
  return new Sampler(async (loraFile) => ({ model: await openOnHost(parts, loraFile), styles: [] }));
}

/** With a whole model, such as one that a plan has put on a device; its LoRAs are styles. */
export function deviceSampler(load: () => Promise<OpenModel>): Sampler {
  return new Sampler(async (loraFile) => ({
    model: await load(),
    styles: loraFile ? [{ key: loraFile, file: loraFile, weight: 1 }] : [],
  }));
}

async function openOnHost(parts: SamplerParts, loraFile: string | null): Promise<OpenModel> {
  const { opened, placed, session, prompts } = parts;
  const transformer = await withLora(parts, loraFile);
  const vae = await Vae.load(opened.vae.spec, placed.vae, session);
  const variant = {
    text: { encode: async (prompt: string): Promise<EncodedText> => prompts.get(prompt)! },
    transformer,
    adaptation: NO_ADAPTATION,
  };
  return {
    scheduler: opened.scheduler,
    vaeSpec: vae.spec,
    sizeMultiple: vae.spec.scaleFactor * PATCH,
    variant: async () => variant,
    decode: (latents, { height, width }) => vae.decode(latents, height, width),
    encode: (image, { height, width }, sample) => vae.encode(image, height, width, sample),
    release: async (): Promise<void> => {
      await transformer.release();
      await vae.release();
    },
  };
}

async function withLora(
  { opened, placed, session }: SamplerParts,
  loraFile: string | null,
): Promise<Transformer> {
  const { spec } = opened.transformer;
  if (!loraFile) return Transformer.load(spec, placed.transformer, session);
  const lora = await readLora(loraFile, loraTarget({ transformer: spec, clip: opened.clip.spec }));
  const deltas = composeDeltas([{ deltas: lora.transformer, weight: 1 }]);
  return withMergedWeights(placed.transformer, deltas, (weights) => Transformer.load(spec, weights, session));
}
