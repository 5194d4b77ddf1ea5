import { createHash } from 'node:crypto';
import { mkdir, readFile, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { FluxError } from '../errors.ts';
import { removeAbandoned, writeAtomically } from './atomic-file.ts';
import { castToFloat8E4m3, decodeFloat32, encodeFloat32, type FloatDtype } from './dtypes.ts';
import { readInto, uninitialized, withFile, writeFrom } from './files.ts';
import {
  BATCH_BYTES,
  batches,
  planLayout,
  type Batch,
  type Piece,
  type Plan,
  type PrepareTarget,
} from './prepare-plan.ts';
import { readHeader } from './safetensors.ts';
import type { TensorView } from './tensor-view.ts';

/** Bytes of prepared weights written so far and in all. */
export interface PrepareProgress {
  readonly done: number;
  readonly total: number;
}

export interface PrepareOptions {
  readonly views: readonly TensorView[];
  readonly target: PrepareTarget;
  /** Folder for the prepared files; made when absent. */
  readonly cacheDir: string;
  /** Which of the tensors that 'F8_E4M3' would quantise are to be; all when absent. */
  readonly quantize?: (view: TensorView) => boolean;
  /** Called after each write; not at all when the cache already has everything. */
  readonly onProgress?: (progress: PrepareProgress) => void;
}

/** Where a prepared tensor lies: `offset` is a multiple of 4096, so that the range can be mapped. */
export interface PreparedTensor {
  readonly name: string;
  readonly dtype: FloatDtype;
  readonly shape: readonly number[];
  readonly file: string;
  readonly offset: number;
  readonly byteLength: number;
  /** Factor of scaled fp8 that is not part of the bytes; 1 for every other tensor. */
  readonly scale: number;
}

/** Raised whenever the same views would be written as other bytes. */
const FORMAT_VERSION = 1;
/** A temporary file that nobody wrote to for so long has lost its writer. */
const ABANDONED_MS = 3_600_000;

/**
 * Converts tensors into one flat file of the cache folder, with an index beside it, or finds what an earlier call
 * made of the same views of the same source files. Memory stays at a few chunks whatever the size of the model.
 * Processes that prepare the same thing at once write the same bytes, and the last to rename wins.
 *
 * @returns where each tensor lies, by name
 * @throws FluxError of the checkpoint when a source cannot be read, `engine_failed` when the cache cannot be written
 */
export async function prepareWeights(options: PrepareOptions): Promise<ReadonlyMap<string, PreparedTensor>> {
  const plan = planLayout(options.views, options.target, options.quantize);
  const key = await cacheKey(plan, options.target);
  const dataPath = resolve(options.cacheDir, `${key}.weights`);
  const indexPath = resolve(options.cacheDir, `${key}.json`);
  const index = indexText(plan, key);
  if (!(await isComplete(dataPath, plan.size, indexPath, index))) {
    try {
      await mkdir(options.cacheDir, { recursive: true });
      await removeAbandoned(options.cacheDir, ABANDONED_MS);
      await writeData(dataPath, plan, options.onProgress);
      // The index comes last: its presence says that the data is whole.
      await writeAtomically(indexPath, (handle) => handle.writeFile(index));
    } catch (cause) {
      const { syscall, message } = cause as NodeJS.ErrnoException;
      if (cause instanceof FluxError || syscall === undefined) throw cause;
      throw new FluxError(
        'engine_failed',
        `${dataPath}: ${plan.size} bytes of weights cannot be written: ${message}`,
        { cause, details: { file: dataPath, bytes: plan.size } },
      );
    }
  }
  return new Map(plan.tensors.map((tensor) => [tensor.view.name, { ...located(tensor), file: dataPath }]));
}

function located({ view, dtype, offset, byteLength, scale }: Plan['tensors'][number]) {
  return { name: view.name, dtype, shape: view.shape, offset, byteLength, scale };
}

function indexText(plan: Plan, key: string): string {
  const index = { version: FORMAT_VERSION, key, bytes: plan.size, tensors: plan.tensors.map(located) };
  return `${JSON.stringify(index, null, 1)}\n`;
}

/** Everything on which the bytes depend: the sources as they are now, the views of them, the target, this code. */
async function cacheKey(plan: Plan, target: PrepareTarget): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify([FORMAT_VERSION, target]));
  for (const file of new Set(plan.tensors.map(({ view }) => view.file))) {
    await withFile(file, async (handle, size) => {
      const { mtimeNs } = await handle.stat({ bigint: true });
      hash.update(JSON.stringify([file, size, String(mtimeNs)])).update(await readHeader(handle, file, size));
    });
  }
  for (const { view, dtype } of plan.tensors) {
    const { name, file, offset, byteLength, shape, scale } = view;
    hash.update(JSON.stringify([name, file, offset, byteLength, view.dtype, shape, scale, dtype]));
  }
  return hash.digest('hex').slice(0, 40);
}

async function isComplete(
  dataPath: string,
  size: number,
  indexPath: string,
  index: string,
): Promise<boolean> {
  try {
    return (await readFile(indexPath, 'utf8')) === index && (await stat(dataPath)).size === size;
  } catch {
    // Absent or unreadable: either way it has to be made anew, and writing reports what is really wrong.
    return false;
  }
}

async function writeData(path: string, plan: Plan, onProgress: PrepareOptions['onProgress']): Promise<void> {
  const total = plan.tensors.reduce((sum, tensor) => sum + tensor.byteLength, 0);
  const buffer = uninitialized(BATCH_BYTES);
  let done = 0;
  await writeAtomically(path, async (target) => {
    for (const [file, group] of Map.groupBy(batches(plan), (batch) => batch.file)) {
      await withFile(file, async (source) => {
        for (const batch of group) {
          const bytes = buffer.subarray(0, batch.end - batch.begin);
          await readInto(source, file, bytes, batch.begin);
          await writeFrom(target, convertBatch(batch, bytes), batch.outBegin);
          done += batch.pieces.reduce((sum, piece) => sum + piece.outLength, 0);
          onProgress?.({ done, total });
        }
      });
    }
    await target.truncate(plan.size);
  });
}

/** The bytes to write for a batch, zeros between its tensors. */
function convertBatch(batch: Batch, source: Uint8Array): Uint8Array {
  const out = new Uint8Array(batch.outEnd - batch.outBegin);
  for (const piece of batch.pieces) {
    const from = source.subarray(piece.begin - batch.begin, piece.end - batch.begin);
    const begin = piece.outBegin - batch.outBegin;
    convertPiece(piece, from, out.subarray(begin, begin + piece.outLength));
  }
  return out;
}

function convertPiece({ tensor }: Piece, from: Uint8Array, to: Uint8Array): void {
  const { view, dtype } = tensor;
  if (dtype === 'F32') {
    decodeFloat32(
      view.dtype,
      from,
      view.scale,
      new Float32Array(to.buffer, to.byteOffset, to.byteLength / 4),
    );
  } else if (dtype === view.dtype) {
    to.set(from);
  } else if ((view.dtype === 'F16' || view.dtype === 'BF16') && view.scale === 1) {
    castToFloat8E4m3(view.dtype, from, to);
  } else {
    to.set(encodeFloat32('F8_E4M3', decodeFloat32(view.dtype, from, view.scale)));
  }
}
