import { readdir, readFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { statPath } from './files.ts';
import { isObject, parseJsonObject } from './json.ts';
import { firstFew, invalid, missing, shown } from './problems.ts';
import { openSafetensors, type SafetensorsFile, type TensorInfo } from './safetensors.ts';

/** A tensor as a file holds it, and the factor of its values (1 except in scaled fp8). */
export interface StoredTensor {
  readonly info: TensorInfo;
  readonly scale: number;
}

/** The tensors of one checkpoint, a file or a folder, under the names that it uses. */
export interface StoredTensors {
  /** Absolute path of the file or folder, for messages. */
  readonly location: string;
  readonly entries: ReadonlyMap<string, StoredTensor>;
}

const INDEX_SUFFIX = '.safetensors.index.json';
const SUFFIX = '.safetensors';
/** What Hugging Face libraries call the only file of a folder; chosen when variants lie beside it. */
const STANDARD_NAMES = Object.freeze(['diffusion_pytorch_model.safetensors', 'model.safetensors']);

/**
 * Reads the headers of a checkpoint: one .safetensors file, or a folder with a `*.safetensors.index.json` and its
 * shards, or with a single .safetensors file.
 *
 * @throws FluxError `checkpoint_missing` when a file, a shard or a tensor promised by the index is absent
 */
export async function openStoredTensors(path: string): Promise<StoredTensors> {
  const location = resolve(path);
  const infos = await openInfos(location);
  return { location, entries: new Map([...infos].map(([name, info]) => [name, { info, scale: 1 }])) };
}

async function openInfos(location: string): Promise<ReadonlyMap<string, TensorInfo>> {
  if (!(await statPath(location)).isDirectory()) return (await openSafetensors(location)).tensors;
  const names = (await readdir(location)).sort();
  const indexes = names.filter((name) => name.endsWith(INDEX_SUFFIX));
  if (indexes.length === 1) return openShards(location, indexes[0]!);
  if (indexes.length > 1) {
    throw invalid(location, `has ${indexes.length} index files, expected one: ${firstFew(indexes)}`);
  }
  const files = names.filter((name) => name.endsWith(SUFFIX));
  const file = files.length === 1 ? files[0] : STANDARD_NAMES.find((name) => files.includes(name));
  if (file) return (await openSafetensors(join(location, file))).tensors;
  if (files.length === 0) throw missing(location, `the folder has no *${SUFFIX} file`);
  throw invalid(
    location,
    `has ${files.length} *${SUFFIX} files and no index, expected one: ${firstFew(files)}`,
  );
}

/** The tensors that the index of a folder names, each from the shard where the index puts it. */
async function openShards(folder: string, indexName: string): Promise<ReadonlyMap<string, TensorInfo>> {
  const index = join(folder, indexName);
  const { weight_map: map } = parseJsonObject(index, 'index', await readFile(index));
  if (!isObject(map)) throw invalid(index, `weight_map is ${shown(map)}; an object was expected`);
  const shards = new Map<string, SafetensorsFile>();
  for (const shard of new Set(Object.values(map))) {
    if (typeof shard !== 'string' || shard !== basename(shard) || !shard.endsWith(SUFFIX)) {
      throw invalid(
        index,
        `weight_map names ${shown(shard)}; a *${SUFFIX} file of the same folder was expected`,
      );
    }
    shards.set(shard, await openSafetensors(join(folder, shard)));
  }
  const tensors = new Map<string, TensorInfo>();
  for (const [name, shard] of Object.entries(map as Record<string, string>)) {
    const info = shards.get(shard)!.tensors.get(name);
    if (!info) {
      throw missing(join(folder, shard), `has no tensor ${shown(name)}, which ${indexName} puts there`, {
        tensor: name,
      });
    }
    tensors.set(name, info);
  }
  return tensors;
}
