import { totalmem } from 'node:os';
import { openModel, type ModelFiles } from './checkpoint/model-files.ts';
import type { SchedulerSpec, VaeSpec } from './checkpoint/spec.ts';
import { expandedBytes, placeWeights, type Placement, type PrepareProgress } from './runtime/placement.ts';
import { PATCH, type LatentSize } from './sampling/latents.ts';
import { TextEncoder, type EncodedText } from './text/encoder.ts';
import { Transformer, type Conditioning, type ConditioningInput } from './transformer/transformer.ts';
import { Vae } from './vae/vae.ts';

export interface LoadOptions {
  name: string;
  files: ModelFiles;
  /** Folder for weights in the form that the provider runs; may be deleted at any time no model is loading. */
  cacheDir: string;
  /** Tokens of T5's result: 512 for FLUX.1-dev, 256 for schnell. */
  maxSequenceLength: number;
  threads?: number;
  /**
   * Chosen from the size of the model and of memory when absent. 'fp8' is for the transformer; the other parts, which
   * are not made to be rounded that far, then stay in place.
   */
  placement?: Placement;
}

/** Part of the machine's memory that weights in fp32 may take before they stay in the checkpoint's type. */
const MEMORY_FOR_WEIGHTS = 0.5;

/** A loaded model: text encoders, transformer and autoencoder ready to run. */
export class FluxModel {
  readonly name: string;
  readonly scheduler: SchedulerSpec;
  readonly vaeSpec: VaeSpec;
  readonly #text: TextEncoder;
  readonly #transformer: Transformer;
  readonly #vae: Vae;

  private constructor(
    name: string,
    scheduler: SchedulerSpec,
    text: TextEncoder,
    transformer: Transformer,
    vae: Vae,
  ) {
    this.name = name;
    this.scheduler = scheduler;
    this.vaeSpec = vae.spec;
    this.#text = text;
    this.#transformer = transformer;
    this.#vae = vae;
  }

  /**
   * @param onProgress bytes of weights prepared so far; not called when the cache already has them
   * @throws FluxError checkpoint_missing, checkpoint_invalid, checkpoint_unsupported, engine_failed
   */
  static async load(
    options: LoadOptions,
    onProgress?: (progress: PrepareProgress) => void,
  ): Promise<FluxModel> {
    const opened = await openModel(options.files);
    const parts = [opened.clip, opened.t5, opened.vae, opened.transformer] as const;
    const totals = parts.map(expandedBytes);
    const total = totals.reduce((sum, bytes) => sum + bytes, 0);
    const placement = options.placement ?? (total < totalmem() * MEMORY_FOR_WEIGHTS ? 'expand' : 'in-place');
    const placementOf = (part: (typeof parts)[number]): Placement =>
      placement === 'fp8' && part !== opened.transformer ? 'in-place' : placement;
    const done = parts.map(() => 0);
    const [clip, t5, vae, transformer] = await Promise.all(
      parts.map((part, i) =>
        placeWeights(part, placementOf(part), options.cacheDir, (progress) => {
          done[i] = progress.done;
          onProgress?.({ done: done.reduce((sum, bytes) => sum + bytes, 0), total });
        }),
      ),
    );
    const session = options.threads ? { threads: options.threads } : {};
    return new FluxModel(
      options.name,
      opened.scheduler,
      await TextEncoder.load(
        {
          clip: { spec: opened.clip.spec, locator: clip!, tokenizer: options.files.tokenizer },
          t5: { spec: opened.t5.spec, locator: t5!, tokenizer: options.files.tokenizer2 },
          maxSequenceLength: options.maxSequenceLength,
        },
        session,
      ),
      await Transformer.load(opened.transformer.spec, transformer!, session),
      await Vae.load(opened.vae.spec, vae!, session),
    );
  }

  /** Sides of a picture are multiples of this many pixels. */
  get sizeMultiple(): number {
    return this.vaeSpec.scaleFactor * PATCH;
  }

  encodeText(prompt: string): Promise<EncodedText> {
    return this.#text.encode(prompt);
  }

  condition(input: ConditioningInput): Promise<Conditioning> {
    return this.#transformer.condition(input);
  }

  velocity(latents: Float32Array, conditioning: Conditioning, step: number): Promise<Float32Array> {
    return this.#transformer.velocity(latents, conditioning, step);
  }

  /** Latents [channels, height, width] -> image [3, height * scaleFactor, width * scaleFactor], about -1..1. */
  decode(latents: Float32Array, size: LatentSize): Promise<Float32Array> {
    return this.#vae.decode(latents, size.height, size.width);
  }

  /** Image [3, height, width] in -1..1 -> latents, with `sample` as the encoder's noise. */
  encode(
    image: Float32Array,
    size: { height: number; width: number },
    sample: Float32Array,
  ): Promise<Float32Array> {
    return this.#vae.encode(image, size.height, size.width, sample);
  }

  async release(): Promise<void> {
    await this.#text.release();
    await this.#transformer.release();
    await this.#vae.release();
  }
}
