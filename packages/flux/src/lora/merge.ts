import { randomUUID } from 'node:crypto';
import { open, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { GraphBuilder, type GraphModel } from '../graph/builder.ts';
import type { LocatedTensor, WeightLocator } from '../graph/weights.ts';
import { GraphSession } from '../runtime/session.ts';
import type { Deltas } from './compose.ts';
import type { LoraDelta } from './types.ts';

/** What ONNX Runtime can map. */
const ALIGNMENT = 4096;

/**
 * W + up · down of every changed module, in fp32, in a file beside the base's. For bases that are fp32 themselves:
 * there a styled step costs what an unstyled one costs. (Into a narrower base it would be lost in rounding.)
 *
 * @param use makes sessions of the base with the changed modules in place of its own; the file is removed when it is
 *   done, and the sessions keep what they have
 */
export async function withMergedWeights<Result>(
  base: WeightLocator,
  deltas: Deltas,
  use: (merged: WeightLocator) => Promise<Result>,
): Promise<Result> {
  const [first] = deltas.keys();
  if (first === undefined) return use(base);
  const path = join(dirname(base.locate(`${first}.weight`).file), `merged-${randomUUID()}.bin`);
  try {
    const merged = await writeMerged(path, base, deltas);
    return await use({
      has: (name) => base.has(name),
      locate: (name) => merged.get(name) ?? base.locate(name),
    });
  } finally {
    await rm(path, { force: true });
  }
}

async function writeMerged(
  path: string,
  base: WeightLocator,
  deltas: Deltas,
): Promise<ReadonlyMap<string, LocatedTensor>> {
  const merged = new Map<string, LocatedTensor>();
  const session = await GraphSession.create('merge', mergeGraph());
  const file = await open(path, 'wx');
  try {
    let offset = 0;
    for (const delta of deltas.values()) {
      const name = `${delta.module}.weight`;
      const located = base.locate(name);
      const data = await mergeOne(session, located, delta);
      await file.write(data, 0, data.byteLength, offset);
      merged.set(name, {
        file: path,
        offset,
        byteLength: data.byteLength,
        dtype: 'F32',
        shape: located.shape,
      });
      offset = Math.ceil((offset + data.byteLength) / ALIGNMENT) * ALIGNMENT;
    }
    return merged;
  } finally {
    await file.close();
    await session.release();
  }
}

function mergeGraph(): GraphModel {
  const g = new GraphBuilder('merge');
  const weight = g.input('weight', 'float32', ['out', 'in']);
  const up = g.input('up', 'float32', ['out', 'rank']);
  const down = g.input('down', 'float32', ['rank', 'in']);
  g.output('merged', g.op('Gemm', [up, down, weight], weight));
  return g.build();
}

async function mergeOne(
  session: GraphSession,
  located: LocatedTensor,
  delta: LoraDelta,
): Promise<Uint8Array> {
  const { rank, inFeatures, outFeatures } = delta;
  const dims = [outFeatures, inFeatures];
  if (located.dtype !== 'F32')
    throw new Error(`${delta.module} is ${located.dtype}; only fp32 can be merged into`);
  const weight = new Float32Array(outFeatures * inFeatures);
  const source = await open(located.file);
  try {
    await source.read(weight, 0, weight.byteLength, located.offset);
  } finally {
    await source.close();
  }
  const { merged } = await session.run(
    {
      weight: { data: weight, dims },
      up: { data: delta.up, dims: [outFeatures, rank] },
      down: { data: delta.down, dims: [rank, inFeatures] },
    },
    ['merged'],
  );
  return new Uint8Array(merged.data.buffer, merged.data.byteOffset, merged.data.byteLength);
}
