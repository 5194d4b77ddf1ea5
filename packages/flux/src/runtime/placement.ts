import { realpath } from 'node:fs/promises';
import { totalmem } from 'node:os';
import type { OpenedModel, OpenedPart } from '../checkpoint/model-files.ts';
import { prepareWeights } from '../checkpoint/prepare.ts';
import type { LocatedTensor, WeightLocator } from '../graph/weights.ts';

/**
 * How a model part's weights come to the CPU provider.
 * 'expand': widened to fp32 once, into the cache, so that no step pays for it.
 * 'in-place': used as they lie in the checkpoint and widened by every run; for models whose fp32 form is too large.
 * 'fp8': the matrices of the blocks (as in published fp8 checkpoints) rounded to float8_e4m3fn once, into the cache,
 * and widened by every run; halves bf16 and fp16.
 */
export type Placement = 'expand' | 'in-place' | 'fp8';

const BLOCK = /^(single_)?transformer_blocks\./;

export interface PrepareProgress {
  /** Bytes written and to be written. */
  done: number;
  total: number;
}

/** Part of the machine's memory that weights in fp32 may take before they stay in the checkpoint's type. */
const MEMORY_FOR_WEIGHTS = 0.5;

export interface PlacedModel {
  clip: WeightLocator;
  t5: WeightLocator;
  vae: WeightLocator;
  transformer: WeightLocator;
  /** Of the transformer. */
  placement: Placement;
}

/**
 * Places every part of a model. The autoencoder and CLIP are always widened: they are small, and a LoRA may be merged
 * into CLIP. T5 is widened when the transformer is; nothing but the transformer is made to be rounded to fp8.
 */
export async function placeModel(
  model: OpenedModel,
  options: { cacheDir: string; placement?: Placement },
  onProgress?: (progress: PrepareProgress) => void,
): Promise<PlacedModel> {
  const sizes = [model.clip, model.vae, model.t5, model.transformer].map(expandedBytes);
  const total = sizes.reduce((sum, bytes) => sum + bytes, 0);
  const placement = options.placement ?? (total < totalmem() * MEMORY_FOR_WEIGHTS ? 'expand' : 'in-place');
  const progress = new Map<OpenedPart<unknown>, PrepareProgress>();
  const place = (part: OpenedPart<unknown>, how: Placement): Promise<WeightLocator> =>
    placeWeights(part, how, options.cacheDir, (now) => {
      progress.set(part, now);
      const sum = (of: 'done' | 'total') => [...progress.values()].reduce((bytes, p) => bytes + p[of], 0);
      onProgress?.({ done: sum('done'), total: sum('total') });
    });
  const [clip, vae, t5, transformer] = await Promise.all([
    place(model.clip, 'expand'),
    place(model.vae, 'expand'),
    place(model.t5, placement === 'expand' ? 'expand' : 'in-place'),
    place(model.transformer, placement),
  ]);
  return { clip, vae, t5, transformer, placement };
}

/** Bytes that the part's weights take in fp32. */
function expandedBytes(part: OpenedPart<unknown>): number {
  return part.weights
    .names()
    .map((name) => part.weights.get(name).shape.reduce((product, size) => product * size, 4))
    .reduce((sum, bytes) => sum + bytes, 0);
}

async function placeWeights(
  part: OpenedPart<unknown>,
  placement: Placement,
  cacheDir: string,
  onProgress?: (progress: PrepareProgress) => void,
): Promise<WeightLocator> {
  const { weights } = part;
  const has = (name: string): boolean => weights.has(name);
  const views = weights.names().map((name) => weights.get(name));
  if (placement === 'in-place') {
    // ONNX Runtime refuses links that leave the graph's folder, which is what a Hugging Face cache consists of.
    const files = new Map<string, string>();
    for (const { file } of views) if (!files.has(file)) files.set(file, await realpath(file));
    const locate = (name: string): LocatedTensor => {
      const { file, offset, byteLength, dtype, shape, scale } = weights.get(name);
      return { file: files.get(file)!, offset, byteLength, dtype, shape, scale };
    };
    return { has, locate };
  }
  const prepared = await prepareWeights({
    views,
    target: placement === 'fp8' ? 'F8_E4M3' : 'F32',
    cacheDir,
    quantize: ({ name }) => BLOCK.test(name),
    ...(onProgress ? { onProgress } : {}),
  });
  return {
    has,
    locate: (name): LocatedTensor => {
      const found = prepared.get(name);
      // Asking the checkpoint for what was not prepared raises its own, clearer error.
      return found ?? weights.get(name);
    },
  };
}
