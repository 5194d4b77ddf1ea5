import type { SafetensorsHeader } from '../checkpoint/safetensors-header.ts';
import { ADAPTER_METADATA_KEY, AdapterMetadata } from './adapter-metadata.ts';
import { ALGORITHMS, type PlannedPair } from './algorithms/index.ts';
import type { FileModule } from './module-table.ts';
import { loraInvalid, loraUnsupported, shapeText, shown } from './problems.ts';
import { type Idle, type Source, sortKeys } from './sources.ts';
import type { LoraTarget } from './types.ts';

/** Rows [begin, end) of a change, which are one canonical module. */
export interface PlannedPart {
  readonly module: string;
  readonly begin: number;
  readonly end: number;
}

/** One change of the file, before any of its values was read. */
export interface PlannedChange {
  readonly source: Source;
  readonly part: FileModule['part'];
  readonly pair: PlannedPair;
  readonly parts: readonly PlannedPart[];
  /** Strength by the metadata. */
  readonly metadataScale: number | undefined;
}

export interface LoraPlan {
  readonly changes: readonly PlannedChange[];
  readonly idle: readonly Idle[];
  /** Left out whatever their values, by the reason. */
  readonly unused: ReadonlyMap<string, readonly string[]>;
  /** fp32 bytes of all pairs. */
  readonly byteLength: number;
}

/**
 * Everything that the header of a LoRA file says, held against itself and the target.
 *
 * @throws FluxError `lora_invalid`, `lora_unsupported`
 */
export function planLora(file: string, header: SafetensorsHeader, target: LoraTarget | null): LoraPlan {
  const { sources, idle, unused } = sortKeys(file, header.tensors);
  if (header.tensors.size === 0) throw loraInvalid(file, 'has no tensors');
  const metadata = AdapterMetadata.parse(file, header.metadata);
  const owners = new Map<string, string>();
  const changes = sources.map((source): PlannedChange => {
    const { located, stem } = source;
    const place = located.place as FileModule;
    const pair = ALGORITHMS[source.algorithm]({ file, stem, tensors: source.factors });
    const parts = splitRows(file, source, place, pair);
    for (const part of parts) {
      claim(file, owners, `${place.part} ${part.module}`, stem);
      if (target) checkTarget(file, stem, part, pair.inFeatures, target[place.part]);
    }
    return { source, part: place.part, pair, parts, metadataScale: metadata?.scaleOf(source, pair.rank) };
  });
  const byteLength = changes.reduce(
    (sum, { pair }) =>
      sum + pair.rank * (pair.inFeatures + pair.outFeatures) * Float32Array.BYTES_PER_ELEMENT,
    0,
  );
  const isIdle = metadata && changes.every(({ metadataScale }) => metadataScale === undefined);
  return {
    changes,
    idle,
    unused: isIdle
      ? new Map([...unused, ['metadata that describe none of the modules', [ADAPTER_METADATA_KEY]]])
      : unused,
    byteLength,
  };
}

function splitRows(file: string, { stem }: Source, place: FileModule, pair: PlannedPair): PlannedPart[] {
  const { modules, rows } = place;
  const { inFeatures: width, outFeatures: total } = pair;
  const sizes = modules.map((_, i) => {
    if (rows === 'equal') return total / modules.length;
    return i < modules.length - 1 ? width : total - (modules.length - 1) * width;
  });
  if (!sizes.every((size) => Number.isInteger(size) && size > 0)) {
    const expected =
      rows === 'equal'
        ? `a multiple of ${modules.length}`
        : `more than ${modules.length - 1} times its ${width} columns`;
    throw loraInvalid(
      file,
      `${shown(stem)} changes ${total} rows; expected ${expected}, for ${modules.join(', ')}`,
      { key: stem, found: total },
    );
  }
  let begin = 0;
  return modules.map((module, i) => {
    const end = begin + sizes[i]!;
    const part = { module, begin, end };
    begin = end;
    return part;
  });
}

function claim(file: string, owners: Map<string, string>, module: string, stem: string): void {
  const rival = owners.get(module);
  if (rival !== undefined) {
    throw loraInvalid(
      file,
      `${shown(rival)} and ${shown(stem)} both change ${module}; one of them was expected`,
      { key: stem, other: rival },
    );
  }
  owners.set(module, stem);
}

function checkTarget(
  file: string,
  stem: string,
  { module, begin, end }: PlannedPart,
  inFeatures: number,
  shapes: LoraTarget['transformer'],
): void {
  const expected = shapes.get(module);
  if (!expected) {
    throw loraUnsupported(file, `${shown(stem)} changes ${module}, which this model does not have`, {
      key: stem,
      module,
    });
  }
  const found = [end - begin, inFeatures];
  if (found[0] === expected[0] && found[1] === expected[1]) return;
  const hint =
    module === 'x_embedder' && inFeatures > expected[1]
      ? '; a LoRA that widens the input is a control LoRA, not a style'
      : '';
  throw loraUnsupported(
    file,
    `${shown(stem)} is for ${module} of shape ${shapeText(found)}; this model's is ${shapeText(expected)}${hint}`,
    { key: stem, module, found, expected },
  );
}
