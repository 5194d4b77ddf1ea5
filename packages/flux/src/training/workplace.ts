import type { OpenedModel } from '../checkpoint/model-files.ts';
import { FluxError } from '../errors.ts';
import type { ComputeType } from '../graph/weights.ts';
import { FluxModel, type LoadOptions } from '../model.ts';
import { devicePlacement } from '../runtime/load-parts.ts';
import { placeModel, type PlacedModel } from '../runtime/placement.ts';
import type { Device } from '../runtime/provider.ts';
import { CONTEXT_BYTES, partBytes } from '../runtime/residency.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { PATCH } from '../sampling/latents.ts';
import { type EncodedText, TextEncoder } from '../text/encoder.ts';
import { Vae } from '../vae/vae.ts';
import { DeviceGradients } from './device-gradients.ts';
import type { TrainedShape } from './device-graph.ts';
import { formatTrainingPlan, planTraining } from './device-plan.ts';
import { type Gradients, LoraGradients, type LoraParameter } from './gradients.ts';
import { OnDemandGradients } from './on-demand.ts';
import type { TrainingOptions } from './options.ts';
import { deviceSampler, hostSampler, type Sampler } from './sampler.ts';

/** The processor or a device, and the parts of a model as a training has them there. */
export interface Workplace {
  /** What encodings and the last bits of a result depend on. */
  provider: string;
  /** As the training has to be run here. */
  options: TrainingOptions;
  /** Why and how, in lines for people. */
  plan: string | null;
  encoders: () => Promise<{ text: TextEncoder; vae: Vae }>;
  gradients: (parameters: readonly LoraParameter[]) => Promise<Gradients>;
  /** @param prompts embeddings of what will be drawn */
  sampler: (prompts: ReadonlyMap<string, EncodedText>) => Sampler;
  /** Whether samplers need those embeddings. */
  encodesPrompts: boolean;
}

export async function hostWorkplace(
  opened: OpenedModel,
  model: LoadOptions,
  options: TrainingOptions,
): Promise<Workplace> {
  const placed = await placeModel(opened, { cacheDir: model.cacheDir, placement: 'expand' });
  const session: SessionOptions = model.threads ? { threads: model.threads } : {};
  return {
    provider: 'cpu',
    options,
    plan: null,
    encodesPrompts: true,
    encoders: async () => ({
      text: await TextEncoder.load(textParts(opened, model, placed), session),
      vae: await Vae.load(opened.vae.spec, placed.vae, session),
    }),
    gradients: (parameters) =>
      LoraGradients.load(opened.transformer.spec, placed.transformer, parameters, session),
    sampler: (prompts) => hostSampler({ opened, placed, session, prompts }),
  };
}

/**
 * Of encoders, gradients and samples one is on the device at a time.
 * @param resolution of the pictures, in pixels
 * @throws FluxError device_too_small
 */
export async function deviceWorkplace(
  opened: OpenedModel,
  model: LoadOptions & { device: Device },
  options: TrainingOptions,
  modules: readonly TrainedShape[],
  resolution: number,
): Promise<Workplace> {
  const { device, deviceBytes = Infinity, maxSequenceLength } = model;
  if (device.provider === 'webgpu')
    throw new FluxError(
      'provider_unavailable',
      'trainings run on the providers cpu and cuda, not on webgpu',
      {
        details: { provider: device.provider },
      },
    );
  const { spec } = opened.transformer;
  const compute: ComputeType = 'float16';
  const freeBytes = Math.min(device.memory?.freeBytes ?? Infinity, deviceBytes);
  const placement = model.placement ?? devicePlacement(opened, freeBytes);
  const placed = await placeModel(opened, { cacheDir: model.cacheDir, placement });
  const image = (resolution / (opened.vae.spec.scaleFactor * PATCH)) ** 2;
  const tokens = { image: Math.ceil(image), text: maxSequenceLength };
  const plan = planTraining(spec, placed.transformer, modules, compute, tokens, freeBytes);

  const host: SessionOptions = model.threads ? { threads: model.threads } : {};
  const session: SessionOptions = { ...host, provider: device.provider };
  let gradients: Gradients | null = null;
  return {
    provider: device.provider,
    // Gradients in fp16 would vanish without.
    options: { ...options, lossScaling: 'dynamic' },
    plan: formatTrainingPlan(plan),
    encodesPrompts: false,
    encoders: async () => {
      const parts = textParts(opened, model, placed);
      const fits = CONTEXT_BYTES + 1.1 * partBytes(opened.t5) + ENCODER_WORK <= freeBytes;
      const t5 = { ...parts.t5, session, ...(fits ? {} : { streamed: compute }) };
      return {
        text: await TextEncoder.load({ ...parts, t5 }, host),
        vae: await Vae.load(opened.vae.spec, placed.vae, { ...session, transient: true, tiling: TILING }),
      };
    },
    gradients: async (parameters) => {
      const load = (): Promise<Gradients> =>
        DeviceGradients.load(spec, placed.transformer, parameters, compute, session);
      return (gradients = new OnDemandGradients(load));
    },
    sampler: () =>
      deviceSampler(async () => {
        await gradients?.release();
        return FluxModel.load(model);
      }),
  };
}

/** Of T5 and the autoencoder, beside T5's weights. */
const ENCODER_WORK = 2 * 2 ** 30;
/** In latents: what the encoder takes for it fits in every device that a training fits in. */
const TILING = Object.freeze({ above: 64, tile: 64 });

function textParts(
  { clip, t5 }: OpenedModel,
  { files, maxSequenceLength }: LoadOptions,
  placed: PlacedModel,
) {
  return {
    clip: { spec: clip.spec, locator: placed.clip, tokenizer: files.tokenizer },
    t5: { spec: t5.spec, locator: placed.t5, tokenizer: files.tokenizer2 },
    maxSequenceLength,
  };
}
