import {
  AtelierError,
  type FieldError,
  type LoraRecord,
  type LoraRegistry,
  type PinnedStyle,
  type StyleRef,
  formatPin,
  latestOf,
  parseLoraRef,
} from '@atelier/shared';
import { suggest } from '../validation/suggest.ts';

/**
 * The styles of a request as a job keeps them: each name with the version that it stands for now, each weight a
 * number. Styles that are pinned already are only looked up.
 * @throws AtelierError `unknown_lora` with one entry for each style of which there is no such LoRA or version
 */
export async function pinStyles(
  loras: LoraRegistry,
  tenant: string,
  styles: readonly StyleRef[],
): Promise<PinnedStyle[]> {
  if (styles.length === 0) return [];
  const refs = styles.map(({ lora }) => parseLoraRef(lora));
  const known = await loras.getMany(
    tenant,
    refs.map((ref) => ref?.name ?? '-'),
  );
  const pinned: PinnedStyle[] = [];
  const errors: FieldError[] = [];
  for (const [index, { lora, weight }] of styles.entries()) {
    const record = refs[index] ? known[index] : undefined;
    const version = record && versionOf(record, refs[index]!.version);
    if (version === undefined || !record) {
      const message = record
        ? `${record.name} has the versions ${numbersOf(record)}`
        : await describeUnknown(loras, tenant, lora);
      errors.push({ field: `styles[${index}].lora`, message: `found ${JSON.stringify(lora)}; ${message}` });
    } else {
      pinned.push({ lora: formatPin(record.name, version), weight: weight ?? record.default_weight });
    }
  }
  if (errors.length === 0) return pinned;
  const detail = errors.map(({ field, message }) => `${field}: ${message}`).join('; ');
  throw new AtelierError('unknown_lora', detail, { errors });
}

function versionOf(record: LoraRecord, version: number | null): number | undefined {
  if (version === null) return latestOf(record).version;
  return record.versions.find((known) => known.version === version)?.version;
}

/** The newest ones: a list of hundreds helps nobody. */
function numbersOf({ versions }: LoraRecord): string {
  const numbers = versions.map(({ version }) => version).slice(-10);
  return `${numbers.length < versions.length ? '…, ' : ''}${numbers.join(', ')}`;
}

async function describeUnknown(loras: LoraRegistry, tenant: string, found: string): Promise<string> {
  const names = await loras.names(tenant);
  if (names.length === 0) return 'there are no LoRAs yet; PUT /v1/loras/{name} imports one';
  const close = closeTo(found.split('@', 1)[0]!.toLowerCase(), names);
  const hint = close.length === 0 ? '' : `did you mean ${close.join(' or ')}? `;
  return `there is no such LoRA; ${hint}GET /v1/loras lists all ${names.length}`;
}

/** Names that were probably meant: one that differs by a slip, and those that contain or continue what was found. */
function closeTo(found: string, names: readonly string[]): string[] {
  const related = names.filter((name) => name.includes(found) || found.includes(name));
  const slip = suggest(found, names);
  return [...new Set([...(slip === undefined ? [] : [slip]), ...related])].slice(0, 3);
}
