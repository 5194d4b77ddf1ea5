import type { OpenedModel } from '../checkpoint/model-files.ts';
import { composeDeltas } from '../lora/compose.ts';
import { withMergedWeights } from '../lora/merge.ts';
import { readLora } from '../lora/read.ts';
import { loraTarget } from '../lora/target.ts';
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

/**
 * Draws what the LoRA of a checkpoint makes of some prompts, with the pipeline that draws jobs: the same file, seed
 * and size give the same bytes there. Transformer and autoencoder are in memory only while it draws, and no random
 * number is taken from the training's streams.
 */
export class Sampler {
  readonly #parts: SamplerParts;

  constructor(parts: SamplerParts) {
    this.#parts = parts;
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
    const model = await this.#load(loraFile);
    try {
      for (const [index, prompt] of prompts.entries()) {
        const request = { prompt, width: side, height: side, steps, guidance, seed: seed + index };
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

  async #load(loraFile: string | null): Promise<PictureModel & { release: () => Promise<void> }> {
    const { opened, placed, session, prompts } = this.#parts;
    const transformer = await this.#transformer(loraFile);
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

  /** The transformer with the LoRA merged into its weights, as jobs have it on fp32 weights. */
  async #transformer(loraFile: string | null): Promise<Transformer> {
    const { opened, placed, session } = this.#parts;
    const { spec } = opened.transformer;
    if (!loraFile) return Transformer.load(spec, placed.transformer, session);
    const lora = await readLora(loraFile, loraTarget({ transformer: spec, clip: opened.clip.spec }));
    const deltas = composeDeltas([{ deltas: lora.transformer, weight: 1 }]);
    return withMergedWeights(placed.transformer, deltas, (weights) =>
      Transformer.load(spec, weights, session),
    );
  }
}
