import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FluxError } from '../errors.ts';
import { openSafetensors, readTensor, writeSafetensors, type TensorEntry } from './safetensors.ts';

/** Support of the tests in this folder. */

export const FIXTURES = join(import.meta.dirname, '../../../../test/golden/fixtures');

/** A folder for the files of a test file, removed after its tests. */
export function temporaryFolder(): { readonly path: string; file(name: string): string } {
  let path = '';
  beforeAll(async () => {
    path = await mkdtemp(join(tmpdir(), 'atelier-checkpoint-'));
  });
  afterAll(() => rm(path, { recursive: true, force: true }));
  return {
    get path() {
      return path;
    },
    file: (name) => join(path, name),
  };
}

/** The FluxError that `action` must reject with. */
export async function rejection(action: Promise<unknown>): Promise<FluxError> {
  const outcome = await action.then(
    () => 'success',
    (error: unknown) => error,
  );
  if (outcome instanceof FluxError) return outcome;
  throw new Error('a FluxError was expected', { cause: outcome });
}

/** A tensor of zeros, or of the given bytes. */
export function entry(
  name: string,
  dtype: TensorEntry['dtype'],
  shape: readonly number[],
  data?: Uint8Array,
): TensorEntry {
  const width = { F64: 8, I64: 8, F32: 4, F16: 2, BF16: 2 }[dtype as string] ?? 1;
  return { name, dtype, shape, data: data ?? new Uint8Array(shape.reduce((a, b) => a * b, width)) };
}

/** All tensors of a file, by name, to be changed and written again. */
export async function readEntries(path: string): Promise<Map<string, TensorEntry>> {
  const { tensors } = await openSafetensors(path);
  const entries = new Map<string, TensorEntry>();
  for (const info of tensors.values()) {
    entries.set(info.name, {
      name: info.name,
      dtype: info.dtype,
      shape: info.shape,
      data: await readTensor(info),
    });
  }
  return entries;
}

/** Writes a copy of a safetensors file with its tensors edited. */
export async function writeEdited(
  source: string,
  target: string,
  edit: (entries: Map<string, TensorEntry>) => void,
): Promise<string> {
  const entries = await readEntries(source);
  edit(entries);
  await writeSafetensors(target, entries.values());
  return target;
}
