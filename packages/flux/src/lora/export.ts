import { encodeFloat32 } from '../checkpoint/dtypes.ts';
import { type TensorEntry, writeSafetensors } from '../checkpoint/safetensors.ts';
import { ADAPTER_METADATA_KEY } from './adapter-metadata.ts';
import { type FusedDelta, fuseDeltas } from './fuse.ts';
import { BFL, CLIP, CLIP_ROOT, DIFFUSERS, type ModuleNames, type Owner } from './module-table.ts';
import { loraUnsupported, shown } from './problems.ts';
import type { Lora, LoraDelta } from './types.ts';

/** `peft` is for diffusers and PEFT, `kohya` for ComfyUI and sd-scripts. */
export type LoraFormat = 'peft' | 'kohya';

/** What values are written as. F32 keeps all of them as they are. */
export type LoraDtype = 'F32' | 'F16' | 'BF16';

interface Form {
  readonly parts: readonly { part: 'transformer' | 'clip'; prefix: string; names: ModuleNames }[];
  readonly separator: '.' | '_';
  readonly down: string;
  readonly up: string;
  readonly hasAlpha: boolean;
}

const FORMS: Readonly<Record<LoraFormat, Form>> = Object.freeze({
  peft: {
    parts: [
      { part: 'transformer', prefix: 'transformer.', names: DIFFUSERS },
      { part: 'clip', prefix: 'text_encoder.', names: CLIP },
    ],
    separator: '.',
    down: '.lora_A.weight',
    up: '.lora_B.weight',
    hasAlpha: false,
  },
  kohya: {
    parts: [
      { part: 'transformer', prefix: 'lora_unet_', names: BFL },
      { part: 'clip', prefix: 'lora_te1_', names: CLIP },
    ],
    separator: '_',
    down: '.lora_down.weight',
    up: '.lora_up.weight',
    hasAlpha: true,
  },
});

/** Width of the MLP of a FLUX block over that of its stream, in all of its sizes. */
const MLP_RATIO = 4;

/** One module of the file to be written. */
interface Written {
  readonly prefix: string;
  /** Dotted. */
  readonly path: string;
  readonly delta: FusedDelta;
}

/**
 * Writes a LoRA as other programs read it. Strengths are in the matrices: alpha is the rank everywhere.
 *
 * @param metadata further entries of the file's metadata
 * @throws FluxError `lora_unsupported` when a value does not fit the dtype; RangeError when a module is not one of
 *   FLUX.1 or its CLIP
 */
export async function writeLora(
  path: string,
  lora: Pick<Lora, 'transformer' | 'clip'>,
  format: LoraFormat,
  metadata: Readonly<Record<string, string>> = {},
  dtype: LoraDtype = 'F32',
): Promise<void> {
  const form = FORMS[format];
  const modules = form.parts.flatMap(({ part, prefix, names }) =>
    fuseModules(lora[part], names).map((module): Written => ({ prefix, ...module })),
  );
  const entries = modules.flatMap(({ prefix, path: name, delta }): TensorEntry[] => {
    const stem = prefix + (form.separator === '.' ? name : name.replaceAll('.', form.separator));
    const { rank, inFeatures, outFeatures, up, down } = delta;
    const matrix = (end: string, shape: readonly number[], values: Float32Array): TensorEntry => ({
      name: stem + end,
      dtype,
      shape,
      data: encode(path, stem + end, dtype, values),
    });
    const pair = [matrix(form.down, [rank, inFeatures], down), matrix(form.up, [outFeatures, rank], up)];
    // In F32 whatever the rest is in: BF16 holds no integers above 256 exactly.
    return form.hasAlpha ? [...pair, alphaEntry(`${stem}.alpha`, rank)] : pair;
  });
  await writeSafetensors(path, entries, {
    format: 'pt',
    ...(format === 'peft' && { [ADAPTER_METADATA_KEY]: adapterMetadata(modules) }),
    ...metadata,
  });
}

/** The deltas by the modules that the format has, in the order in which the first of each comes. */
function fuseModules(
  deltas: ReadonlyMap<string, LoraDelta>,
  names: ModuleNames,
): { path: string; delta: FusedDelta }[] {
  const owners = new Map<string, Owner>();
  for (const module of deltas.keys()) {
    const owner = names.owner(module);
    if (!owner) throw new RangeError(`${module} is no linear module that a LoRA file has a name for`);
    owners.set(owner.path, owner);
  }
  return [...owners.values()].map(({ path, modules, rows }) => {
    const own = modules.map((module) => deltas.get(module));
    const present = own.find((delta) => delta !== undefined)!;
    const missingRows = (i: number): number => {
      if (rows === 'equal') return present.outFeatures;
      return i < modules.length - 1 ? present.inFeatures : MLP_RATIO * present.inFeatures;
    };
    const parts = own.map((delta, i) => ({ delta, rows: delta?.outFeatures ?? missingRows(i) }));
    return { path, delta: fuseDeltas(parts) };
  });
}

function encode(file: string, name: string, dtype: LoraDtype, values: Float32Array): Uint8Array {
  const limit = { F32: Infinity, F16: 65_520, BF16: Infinity }[dtype];
  if (limit < Infinity && values.some((value) => Math.abs(value) >= limit)) {
    throw loraUnsupported(file, `${shown(name)} has values beyond ${dtype}; BF16 and F32 hold them`, {
      key: name,
      found: dtype,
      allowed: ['BF16', 'F32'],
    });
  }
  return encodeFloat32(dtype, values);
}

function alphaEntry(name: string, rank: number): TensorEntry {
  return { name, dtype: 'F32', shape: [], data: encodeFloat32('F32', Float32Array.of(rank)) };
}

/** LoraConfigs in which every module has its own rank and strength 1. */
function adapterMetadata(modules: readonly Written[]): string {
  const fields: [string, unknown][] = [];
  for (const [prefix, own] of Map.groupBy(modules, (module) => module.prefix)) {
    const counts = [...Map.groupBy(own, ({ delta }) => delta.rank)].sort(
      ([, a], [, b]) => b.length - a.length,
    );
    const [common] = counts[0]!;
    const others = own.filter(({ delta }) => delta.rank !== common);
    const ranks = Object.fromEntries(others.map(({ path, delta }) => [patternOf(path), delta.rank]));
    fields.push(
      [`${prefix}peft_type`, 'LORA'],
      [`${prefix}r`, common],
      [`${prefix}lora_alpha`, common],
      [`${prefix}rank_pattern`, ranks],
      [`${prefix}alpha_pattern`, ranks],
      [`${prefix}target_modules`, own.map(({ path }) => withoutRoot(path)).sort()],
    );
  }
  return JSON.stringify(Object.fromEntries(fields));
}

/** Without ^ PEFT takes `proj_out` for the end of other paths too. */
function patternOf(path: string): string {
  const end = withoutRoot(path);
  return end === path ? `^${path}` : end;
}

/** CLIP's paths from where they are the same in all versions of transformers; PEFT completes them. */
function withoutRoot(path: string): string {
  return path.startsWith(CLIP_ROOT) ? path.slice(CLIP_ROOT.length) : path;
}
