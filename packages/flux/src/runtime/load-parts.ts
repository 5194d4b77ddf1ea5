import type { OpenedModel } from '../checkpoint/model-files.ts';
import type { VariantBase } from '../lora/variants.ts';
import type { LoadOptions } from '../model.ts';
import { TextEncoder } from '../text/encoder.ts';
import { isConditionerModule } from '../transformer/conditioner.ts';
import { Transformer } from '../transformer/transformer.ts';
import { Vae } from '../vae/vae.ts';
import { placeModel, type Placement, type PrepareProgress } from './placement.ts';
import type { Device } from './provider.ts';
import { partBytes, planResidency, type ResidencyPlan } from './residency.ts';
import { Reserve } from './reserve.ts';
import type { SessionOptions } from './session.ts';

/** The parts of a model where they run. */
export interface LoadedParts {
  base: VariantBase;
  vae: Vae;
  /** What is where on a device; null on the processor. */
  residency: ResidencyPlan | null;
}

/** All parts on the processor, resident. */
export async function loadOnHost(
  opened: OpenedModel,
  options: LoadOptions,
  onProgress?: (progress: PrepareProgress) => void,
): Promise<LoadedParts> {
  const placed = await placeModel(opened, options, onProgress);
  const session = threadsOf(options);
  const { spec } = opened.transformer;
  const text = await TextEncoder.load(textParts(opened, options, placed), session);
  const base: VariantBase = {
    text,
    transformer: await Transformer.load(spec, placed.transformer, session),
    clipWeights: placed.clip,
    transformerWeights: placed.transformer,
    adapts: placed.placement === 'expand' ? 'merge' : 'add',
    conditions: isConditionerModule,
    loadAdapted: (adapted) => Transformer.load(spec, placed.transformer, session, adapted),
    session,
  };
  return { base, vae: await Vae.load(opened.vae.spec, placed.vae, session), residency: null };
}

/** What a plan for the device's free memory has room for is resident there, the rest is streamed. */
export async function loadOnDevice(
  opened: OpenedModel,
  options: LoadOptions & { device: Device },
  onProgress?: (progress: PrepareProgress) => void,
): Promise<LoadedParts> {
  const { device, deviceBytes = Infinity } = options;
  const freeBytes = Math.min(device.memory?.freeBytes ?? Infinity, deviceBytes);
  const placement = options.placement ?? devicePlacement(opened, freeBytes);
  const placed = await placeModel(opened, { ...options, placement }, onProgress);
  const tokenPath = opened.transformer.weights
    .names()
    .filter((name) => !isConditionerModule(name.replace(/\.(weight|bias)$/, '')))
    .reduce((sum, name) => sum + placed.transformer.locate(name).byteLength, 0);
  const plan = planResidency(opened, tokenPath, freeBytes);

  const host = threadsOf(options);
  const session: SessionOptions = { ...host, provider: device.provider };
  // On a roomy device sessions may take what they like.
  const reserve = plan.scarce ? new Reserve(plan.scarce.reserveBytes, session) : null;
  const room = plan.scarce && reserve ? { bytes: plan.scarce.stepBytes, reserve } : null;
  const brief: SessionOptions = { ...session, ...(reserve ? { reserve } : {}) };
  const t5 = { session: brief, ...(plan.t5 === 'streamed' ? { streamed: plan.transformer.compute } : {}) };
  const parts = textParts(opened, options, placed);
  const text = await TextEncoder.load({ ...parts, t5: { ...parts.t5, ...t5 } }, host);
  const { spec } = opened.transformer;
  const transformer = await Transformer.load(spec, placed.transformer, session, new Set(), {
    ...plan.transformer,
    ...(room ? { room } : {}),
  });
  const base: VariantBase = {
    text,
    transformer,
    clipWeights: placed.clip,
    transformerWeights: placed.transformer,
    adapts: 'inputs',
    conditions: isConditionerModule,
    loadAdapted: () => Promise.resolve(transformer),
    session: host,
  };
  const vae = await Vae.load(opened.vae.spec, placed.vae, { ...brief, ...plan.autoencoder });
  return { base, vae, residency: plan };
}

/** As the checkpoint has it when it is fp8 or all of it fits, else in fp8. */
export function devicePlacement({ transformer, vae }: OpenedModel, freeBytes: number): Placement {
  const { weights } = transformer;
  const isFp8 = weights.names().some((name) => weights.get(name).dtype === 'F8_E4M3');
  return isFp8 || partBytes(transformer) + 2 * partBytes(vae) < freeBytes / 2 ? 'in-place' : 'fp8';
}

function threadsOf({ threads }: LoadOptions): SessionOptions {
  return threads ? { threads } : {};
}

function textParts(
  { clip, t5 }: OpenedModel,
  { files, maxSequenceLength }: LoadOptions,
  placed: Awaited<ReturnType<typeof placeModel>>,
) {
  return {
    clip: { spec: clip.spec, locator: placed.clip, tokenizer: files.tokenizer },
    t5: { spec: t5.spec, locator: placed.t5, tokenizer: files.tokenizer2 },
    maxSequenceLength,
  };
}
