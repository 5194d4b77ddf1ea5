import type { TransformerSpec } from '../checkpoint/spec.ts';
import { FluxError } from '../errors.ts';
import { peakLiveBytes } from '../graph/live-bytes.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { CONTEXT_BYTES, gib } from '../runtime/residency.ts';
import { buildTrainingGraph, type TrainedShape } from './device-graph.ts';

/** What a training takes of a device's memory. */
export interface TrainingPlan {
  /** Of the token path, as they are stored. */
  weightBytes: number;
  /** The most that results take at once: inputs of all blocks, and what one block is computed anew with. */
  workBytes: number;
  neededBytes: number;
  freeBytes: number;
}

/** What the allocator of ONNX Runtime leaves unused between its blocks. */
const FRAGMENTATION = 1.1;

/**
 * Counts what the training graph will take, node by node.
 * @param tokens of the largest picture, and of a caption
 * @throws FluxError device_too_small; weights of a training are not streamed
 */
export function planTraining(
  spec: TransformerSpec,
  weights: WeightLocator,
  modules: readonly TrainedShape[],
  compute: ComputeType,
  tokens: { image: number; text: number },
  freeBytes: number,
): TrainingPlan {
  const g = buildTrainingGraph(spec, weights, modules, compute);
  const weightBytes = [...g.build().externals].reduce(
    (sum, name) => sum + weights.locate(name).byteLength,
    0,
  );
  const workBytes = FRAGMENTATION * peakLiveBytes(g, { S: tokens.image, T: tokens.text }).bytes;
  const neededBytes = CONTEXT_BYTES + weightBytes + workBytes;
  if (neededBytes > freeBytes)
    throw new FluxError(
      'device_too_small',
      `the device has ${gib(freeBytes)} GiB of free memory; training at ${tokens.image} image tokens needs ` +
        `${gib(neededBytes)} GiB, ${gib(weightBytes)} of them for weights; a smaller resolution needs less`,
      { details: { freeBytes, neededBytes } },
    );
  return { weightBytes, workBytes, neededBytes, freeBytes };
}

/** The plan in a line for people. */
export function formatTrainingPlan({ weightBytes, workBytes, neededBytes, freeBytes }: TrainingPlan): string {
  return (
    `training: token path ${gib(weightBytes)} GiB on the device, ${gib(workBytes)} GiB while it runs, conditioner ` +
    `streamed; needs ${gib(neededBytes)} of ${gib(freeBytes)} GiB free`
  );
}
