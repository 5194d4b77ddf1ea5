import type { TensorInfo } from '../checkpoint/safetensors.ts';
import { locate, type Located } from './dialects/index.ts';
import { type AlgorithmName, type Leaf, splitKey } from './leaves.ts';
import { firstFew, loraInvalid, loraUnsupported, shown } from './problems.ts';

/** All tensors of a file about one module that it names. */
export interface Source {
  /** The beginning that their keys share. */
  readonly stem: string;
  readonly located: Located;
  readonly algorithm: AlgorithmName;
  readonly factors: ReadonlyMap<string, TensorInfo>;
  readonly alpha: TensorInfo | undefined;
}

/** Tensors that change nothing as long as one of `zeroes` is all zero. */
export interface Idle {
  readonly stem: string;
  readonly what: string;
  readonly zeroes: readonly TensorInfo[];
}

export interface SortedKeys {
  readonly sources: readonly Source[];
  /** To be looked at: refused when they are not zero. */
  readonly idle: readonly Idle[];
  /** Left out whatever their values, by the reason. */
  readonly unused: ReadonlyMap<string, readonly string[]>;
}

interface Group {
  readonly stem: string;
  readonly located: Located;
  readonly factors: Map<string, TensorInfo>;
  algorithm?: AlgorithmName;
  alpha?: TensorInfo;
}

/**
 * Puts every key of a file to the module that it is about. Only names are looked at.
 *
 * @throws FluxError `lora_unsupported` for keys that no dialect has and for what is no LoRA, `lora_invalid` for a
 *   module with two tensors for one thing
 */
export function sortKeys(file: string, tensors: ReadonlyMap<string, TensorInfo>): SortedKeys {
  const groups = new Map<string, Group>();
  const idle: Idle[] = [];
  const unknown: string[] = [];
  for (const [key, info] of tensors) {
    const split = splitKey(key);
    if (!split) {
      unknown.push(key);
      continue;
    }
    const { stem, leaf } = split;
    if (leaf.kind === 'refused')
      throw loraUnsupported(file, `key ${shown(key)} is not supported: ${leaf.why}`, { key });
    if (leaf.kind === 'addend') {
      idle.push({ stem: key, what: leaf.what, zeroes: [info] });
      continue;
    }
    const group = groups.get(stem) ?? newGroup(stem);
    if (!group) {
      unknown.push(key);
      continue;
    }
    groups.set(stem, group);
    addTensor(file, group, leaf, info);
  }
  if (unknown.length > 0) throw unknownKeys(file, unknown);
  return { ...classify(file, groups.values(), idle) };
}

function newGroup(stem: string): Group | undefined {
  const located = locate(stem);
  return located && { stem, located, factors: new Map() };
}

function addTensor(file: string, group: Group, leaf: Leaf, info: TensorInfo): void {
  if (leaf.kind === 'factor') {
    group.algorithm ??= leaf.algorithm;
    if (group.algorithm !== leaf.algorithm) {
      throw loraInvalid(
        file,
        `key ${shown(info.name)} belongs to ${leaf.algorithm}, other keys of ${shown(group.stem)} to ${group.algorithm}`,
        { key: info.name },
      );
    }
  }
  const role = leaf.kind === 'factor' ? leaf.role : 'alpha';
  const rival = leaf.kind === 'factor' ? group.factors.get(role) : group.alpha;
  if (rival) {
    throw loraInvalid(
      file,
      `keys ${shown(rival.name)} and ${shown(info.name)} are both the ${role} of one module`,
      { key: info.name, other: rival.name },
    );
  }
  if (leaf.kind === 'factor') group.factors.set(role, info);
  else group.alpha = info;
}

function classify(file: string, groups: Iterable<Group>, idle: Idle[]): SortedKeys {
  const sources: Source[] = [];
  const unused = new Map<string, string[]>();
  for (const { stem, located, algorithm, factors, alpha } of groups) {
    if (!algorithm) {
      throw loraInvalid(file, `key ${shown(alpha?.name)} has no matrices beside it`, { key: alpha?.name });
    }
    const { place } = located;
    if (place.kind === 'module') sources.push({ stem, located, algorithm, factors, alpha });
    else if (place.unused) unused.set(place.what, [...(unused.get(place.what) ?? []), stem]);
    else idle.push({ stem, what: place.what, zeroes: [...factors.values()] });
  }
  return { sources, idle, unused };
}

const KNOWN =
  'known are the names of diffusers / PEFT, kohya, ComfyUI, OneTrainer, XLabs, Black Forest Labs and LyCORIS ' +
  'for linear modules of FLUX.1 and its CLIP';

function unknownKeys(file: string, unknown: readonly string[]) {
  const keys = firstFew(unknown.map((key) => shown(key)));
  return loraUnsupported(file, `unknown keys: ${keys}; ${KNOWN}`, {
    unknown: unknown.slice(0, 5),
    count: unknown.length,
  });
}
