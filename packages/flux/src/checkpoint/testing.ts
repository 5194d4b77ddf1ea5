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

/** A seeded generator of integers below `limit` (mulberry32). */
export function generator(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  };
}

export type Random = ReturnType<typeof generator>;

export const pick = <T>(random: Random, items: readonly T[]): T => items[random(items.length)]!;

/** A Black Forest Labs transformer of zeros with one block of each kind and one head of the full width. */
export function bflTransformer(width: number, mlp = 2 * width): TensorEntry[] {
  const modules: [string, number, number][] = [
    ['img_in', width, 64],
    ['txt_in', width, 8],
    ['time_in.in_layer', width, 16],
    ['time_in.out_layer', width, width],
    ['vector_in.in_layer', width, 4],
    ['vector_in.out_layer', width, width],
    ...['img', 'txt'].flatMap((stream): [string, number, number][] => [
      [`double_blocks.0.${stream}_mod.lin`, 6 * width, width],
      [`double_blocks.0.${stream}_attn.qkv`, 3 * width, width],
      [`double_blocks.0.${stream}_attn.proj`, width, width],
      [`double_blocks.0.${stream}_mlp.0`, mlp, width],
      [`double_blocks.0.${stream}_mlp.2`, width, mlp],
    ]),
    ['single_blocks.0.modulation.lin', 3 * width, width],
    ['single_blocks.0.linear1', 3 * width + mlp, width],
    ['single_blocks.0.linear2', width, width + mlp],
    ['final_layer.adaLN_modulation.1', 2 * width, width],
    ['final_layer.linear', 64, width],
  ];
  const norms = ['double_blocks.0.img_attn', 'double_blocks.0.txt_attn', 'single_blocks.0'].flatMap(
    (attention) => [`${attention}.norm.query_norm.scale`, `${attention}.norm.key_norm.scale`],
  );
  return [
    ...modules.flatMap(([name, rows, columns]) => [
      entry(`${name}.weight`, 'F8_E4M3', [rows, columns]),
      entry(`${name}.bias`, 'BF16', [rows]),
    ]),
    ...norms.map((name) => entry(name, 'BF16', [width])),
  ];
}
