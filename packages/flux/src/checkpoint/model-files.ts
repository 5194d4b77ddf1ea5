import { readConfig, type Config, type ConfigKind } from './config.ts';
import type { MappedWeights } from './layouts/layout.ts';
import type { ModelPart } from './model-parts.ts';
import { unsupported } from './problems.ts';
import {
  CLIP_CONFIG,
  clipSpec,
  readScheduler,
  T5_CONFIG,
  t5Spec,
  TRANSFORMER_CONFIG,
  transformerSpec,
  VAE_CONFIG,
  vaeSpec,
  type ClipSpec,
  type SchedulerSpec,
  type T5Spec,
  type TransformerSpec,
  type VaeSpec,
} from './spec.ts';
import { openWeights, type WeightSource } from './weights.ts';

/** Absolute paths of the parts of a model, each a file or a folder. */
export interface ModelFiles {
  readonly transformer: string;
  readonly vae: string;
  /** CLIP. */
  readonly textEncoder: string;
  /** T5. */
  readonly textEncoder2: string;
  readonly tokenizer: string;
  readonly tokenizer2: string;
  readonly scheduler: string;
}

/** A part whose headers were read and whose every tensor has the shape that `spec` demands. */
export interface OpenedPart<Spec> {
  readonly weights: WeightSource;
  readonly spec: Spec;
}

export interface OpenedModel {
  readonly files: ModelFiles;
  readonly transformer: OpenedPart<TransformerSpec>;
  readonly vae: OpenedPart<VaeSpec>;
  readonly clip: OpenedPart<ClipSpec>;
  readonly t5: OpenedPart<T5Spec>;
  readonly scheduler: SchedulerSpec;
}

/** Side of the square of latents that is packed into one token. */
const PATCH = 2;

/**
 * Reads the headers and configs of all parts of a model, tells their layouts, and checks that every tensor is there
 * with the right shape and that the parts fit each other. No weights are read.
 *
 * @throws FluxError `checkpoint_missing`, `checkpoint_invalid`, `checkpoint_unsupported`
 */
export async function openModel(files: ModelFiles): Promise<OpenedModel> {
  const [transformer, vae, clip, t5, scheduler] = await Promise.all([
    openPart(files.transformer, 'transformer', TRANSFORMER_CONFIG, transformerSpec),
    openPart(files.vae, 'vae', VAE_CONFIG, vaeSpec),
    openPart(files.textEncoder, 'clip', CLIP_CONFIG, clipSpec),
    openPart(files.textEncoder2, 't5', T5_CONFIG, t5Spec),
    readScheduler(files.scheduler),
  ]);
  const model: OpenedModel = { files, transformer, vae, clip, t5, scheduler };
  checkFit(model);
  return model;
}

async function openPart<Spec>(
  path: string,
  part: ModelPart,
  kind: ConfigKind,
  derive: (weights: MappedWeights, config: Config) => Spec,
): Promise<OpenedPart<Spec>> {
  const [weights, config] = await Promise.all([openWeights(path, part), readConfig(path, kind)]);
  return { weights, spec: derive(weights, config) };
}

/** What one part gives must be what the other takes. */
function checkFit({ files, transformer, vae, clip, t5 }: OpenedModel): void {
  const { inChannels, outChannels, pooledDim, jointDim } = transformer.spec;
  const packed = vae.spec.latentChannels * PATCH * PATCH;
  const pairs: [string, number, string, number][] = [
    ['packed latents', packed, 'of the autoencoder', outChannels],
    ['pooled text', clip.spec.hiddenSize, 'of CLIP', pooledDim],
    ['text states', t5.spec.modelDim, 'of T5', jointDim],
    // Fill, depth and canny models take a picture beside the latents.
    ['input tokens', outChannels, 'of a text-to-image model', inChannels],
  ];
  for (const [what, given, whose, taken] of pairs) {
    if (given === taken) continue;
    throw unsupported(files.transformer, `takes ${what} of width ${taken}; those ${whose} have ${given}`, {
      found: taken,
      expected: given,
    });
  }
}
