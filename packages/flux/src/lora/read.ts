import { resolve } from 'node:path';
import { withFile } from '../checkpoint/files.ts';
import { parseHeader } from '../checkpoint/safetensors-header.ts';
import { readHeader } from '../checkpoint/safetensors.ts';
import type { Pair } from './algorithms/index.ts';
import { isAllFinite, isZero, scaleInPlace } from './matrix.ts';
import { MatrixReader } from './matrix-reader.ts';
import { type LoraPlan, type PlannedChange, planLora } from './plan.ts';
import { firstFew, loraInvalid, loraUnsupported, shown, withLoraCodes } from './problems.ts';
import { splitPair } from './split.ts';
import type { Idle } from './sources.ts';
import type { Lora, LoraDelta, LoraTarget } from './types.ts';

export interface ReadLoraOptions {
  /** fp32 bytes of all matrices beyond which a file is refused; small LoHa and LoKr files can unfold without end. */
  readonly maxBytes?: number;
}

/** Rank 128 on every linear of FLUX.1 takes 1.8 GiB. */
const DEFAULT_MAX_BYTES = 4 * 2 ** 30;

/**
 * Reads a LoRA file of any dialect into canonical form.
 *
 * @param target modules that may be changed, and their shapes; null to look only at whether the file adds up
 * @throws FluxError `lora_invalid`, `lora_unsupported`; `checkpoint_missing` when there is no such file
 */
export async function readLora(
  file: string,
  target: LoraTarget | null,
  options: ReadLoraOptions = {},
): Promise<Lora> {
  const path = resolve(file);
  const { maxBytes = DEFAULT_MAX_BYTES } = options;
  return withLoraCodes(() =>
    withFile(path, async (handle, size) => {
      const bytes = await readHeader(handle, path, size);
      const header = parseHeader(path, bytes.subarray(8), bytes.byteLength, size);
      const plan = planLora(path, header, target);
      if (plan.byteLength > maxBytes) {
        throw loraUnsupported(
          path,
          `unfolds to ${plan.byteLength} bytes in fp32; at most ${maxBytes} are allowed`,
          { found: plan.byteLength, allowed: maxBytes },
        );
      }
      return readPlan(path, plan, new MatrixReader(handle, path));
    }),
  );
}

async function readPlan(file: string, plan: LoraPlan, reader: MatrixReader): Promise<Lora> {
  const warnings = new Map<string, string[]>();
  const warn = (reason: string, stem: string): void => {
    warnings.set(reason, [...(warnings.get(reason) ?? []), stem]);
  };
  for (const [what, stems] of plan.unused) for (const stem of stems) warn(`Left out: ${what}`, stem);
  for (const idle of plan.idle) {
    await checkIdle(file, idle, reader);
    warn(`Left out because it is zero: ${idle.what}`, idle.stem);
  }
  const parts = { transformer: new Map<string, LoraDelta>(), clip: new Map<string, LoraDelta>() };
  const dialects = new Set<string>();
  for (const change of plan.changes) {
    const { source } = change;
    dialects.add(source.located.dialect);
    if (source.algorithm !== 'lora') dialects.add(source.algorithm);
    const pair = await readPair(file, change, reader);
    if (isZero(pair.up.data) || isZero(pair.down.data)) {
      warn('Left out because it is zero: the change', source.stem);
      continue;
    }
    for (const delta of splitPair(pair, change.parts)) parts[change.part].set(delta.module, delta);
  }
  if (parts.transformer.size + parts.clip.size === 0) {
    throw loraInvalid(file, 'changes nothing: all that it has is zero', { warnings: [...warnings.keys()] });
  }
  return {
    ...parts,
    dialects: [...dialects],
    warnings: [...warnings].map(([reason, stems]) => `${reason} (${firstFew(stems)}).`),
    byteLength: bytesOf([...parts.transformer.values(), ...parts.clip.values()]),
  };
}

async function readPair(file: string, change: PlannedChange, reader: MatrixReader): Promise<Pair> {
  const { source, pair: planned, metadataScale } = change;
  const pair = await planned.build((info) => reader.matrix(info));
  const scale = await readScale(file, change, reader);
  scaleInPlace(pair.up.data, scale);
  const derived = source.algorithm !== 'lora' || scale !== 1;
  if (derived && !(isAllFinite(pair.up.data) && isAllFinite(pair.down.data))) {
    throw loraInvalid(file, `the change of ${shown(source.stem)}, of strength ${scale}, is beyond fp32`, {
      key: source.stem,
      metadataScale,
    });
  }
  return pair;
}

/** alpha / rank; 1 without an alpha, and for an alpha of 0, which is how sd-scripts writes that. */
async function readScale(file: string, change: PlannedChange, reader: MatrixReader): Promise<number> {
  const { source, pair, metadataScale } = change;
  const { alpha } = source;
  if (!alpha) return metadataScale ?? 1;
  const value = await reader.scalar(alpha);
  if (pair.alphaRank === null) return 1;
  const scale = value === 0 ? 1 : value / pair.alphaRank;
  if (metadataScale !== undefined && Math.fround(metadataScale) !== Math.fround(scale)) {
    throw loraInvalid(
      file,
      `${shown(alpha.name)} gives a strength of ${scale}, the metadata of ${metadataScale}; one was expected`,
      { key: alpha.name, found: [scale, metadataScale] },
    );
  }
  return scale;
}

async function checkIdle(file: string, { stem, what, zeroes }: Idle, reader: MatrixReader): Promise<void> {
  for (const info of zeroes) if (isZero(await reader.values(info))) return;
  throw loraUnsupported(
    file,
    `${shown(stem)} changes ${what}; supported are changes of linear modules of the transformer and of CLIP`,
    { key: stem, found: what },
  );
}

/** Deltas that were split off one share their `down`, and their `up` is a window of one. */
function bytesOf(deltas: readonly LoraDelta[]): number {
  const buffers = new Set(deltas.flatMap(({ up, down }) => [up.buffer, down.buffer]));
  return [...buffers].reduce((sum, buffer) => sum + buffer.byteLength, 0);
}
