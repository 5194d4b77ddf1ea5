import { realpath } from 'node:fs/promises';
import type { OpenedPart } from '../checkpoint/model-files.ts';
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

/** Bytes that the part's weights take in fp32. */
export function expandedBytes(part: OpenedPart<unknown>): number {
  return part.weights
    .names()
    .map((name) => part.weights.get(name).shape.reduce((product, size) => product * size, 4))
    .reduce((sum, bytes) => sum + bytes, 0);
}

export async function placeWeights(
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
