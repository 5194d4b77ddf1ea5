import { openModel, type ModelFiles } from './checkpoint/model-files.ts';
import type { SchedulerSpec, VaeSpec } from './checkpoint/spec.ts';
import { LoraStore } from './lora/store.ts';
import { loraTarget } from './lora/target.ts';
import type { Style } from './lora/types.ts';
import { type Variant, Variants } from './lora/variants.ts';
import { loadOnDevice, loadOnHost } from './runtime/load-parts.ts';
import type { Placement, PrepareProgress } from './runtime/placement.ts';
import type { Device } from './runtime/provider.ts';
import type { ResidencyPlan } from './runtime/residency.ts';
import { PATCH, type LatentSize } from './sampling/latents.ts';
import type { TextEncoder } from './text/encoder.ts';
import type { Transformer } from './transformer/transformer.ts';
import type { Vae } from './vae/vae.ts';

export interface LoadOptions {
  name: string;
  files: ModelFiles;
  /** Folder for weights in the form that the provider runs; may be deleted at any time no model is loading. */
  cacheDir: string;
  /** Tokens of T5's result: 512 for FLUX.1-dev, 256 for schnell. */
  maxSequenceLength: number;
  threads?: number;
  /**
   * Of the transformer's weights; chosen from the size of the model and of memory when absent. On a device 'expand'
   * means fp16.
   */
  placement?: Placement;
  /** Where the model runs; the processor when absent. */
  device?: Device;
  /** What the model may take of a device's memory; all that is free when absent. */
  deviceBytes?: number;
}

/** A loaded model: text encoders, transformer and autoencoder ready to run. */
export class FluxModel {
  readonly name: string;
  readonly scheduler: SchedulerSpec;
  readonly vaeSpec: VaeSpec;
  readonly #text: TextEncoder;
  readonly #transformer: Transformer;
  readonly #vae: Vae;
  readonly #variants: Variants;
  readonly #residency: ResidencyPlan | null;

  private constructor(
    name: string,
    scheduler: SchedulerSpec,
    parts: {
      text: TextEncoder;
      transformer: Transformer;
      vae: Vae;
      variants: Variants;
      residency: ResidencyPlan | null;
    },
  ) {
    this.name = name;
    this.scheduler = scheduler;
    this.vaeSpec = parts.vae.spec;
    this.#text = parts.text;
    this.#transformer = parts.transformer;
    this.#vae = parts.vae;
    this.#variants = parts.variants;
    this.#residency = parts.residency;
  }

  /**
   * @param onProgress bytes of weights prepared so far; not called when the cache already has them
   * @throws FluxError checkpoint_missing, checkpoint_invalid, checkpoint_unsupported, engine_failed, device_too_small
   */
  static async load(
    options: LoadOptions,
    onProgress?: (progress: PrepareProgress) => void,
  ): Promise<FluxModel> {
    const opened = await openModel(options.files);
    const parts = await (onDevice(options)
      ? loadOnDevice(opened, options, onProgress)
      : loadOnHost(opened, options, onProgress));
    const target = loraTarget({ transformer: opened.transformer.spec, clip: opened.clip.spec });
    const variants = new Variants(parts.base, new LoraStore(target));
    return new FluxModel(options.name, opened.scheduler, { ...parts, ...parts.base, variants });
  }

  /** What is where, for people; null on the processor. */
  get residency(): ResidencyPlan | null {
    return this.#residency;
  }

  /** Sides of a picture are multiples of this many pixels. */
  get sizeMultiple(): number {
    return this.vaeSpec.scaleFactor * PATCH;
  }

  /** The model as a set of styles makes it; the model itself for none. */
  variant(styles: readonly Style[]): Promise<Variant> {
    return this.#variants.get(styles);
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
    this.#variants.release();
    await this.#text.release();
    await this.#transformer.release();
    await this.#vae.release();
  }
}

function onDevice(options: LoadOptions): options is LoadOptions & { device: Device } {
  return options.device !== undefined && options.device.provider !== 'cpu';
}
