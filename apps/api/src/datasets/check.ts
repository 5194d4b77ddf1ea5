import { createHash } from 'node:crypto';
import { AtelierError, type DatasetFile, type FieldError, type NewDatasetFile } from '@atelier/shared';
import { readImageHeader } from '../images/header.ts';
import { MAX_IMAGE_PIXELS } from '../images/init-image.ts';
import { EntryError, EntryTooLargeError, type UploadedEntry } from './entry.ts';
import { type DatasetLimits, tooManyFiles } from './limits.ts';
import { type EntryPath, judgeName } from './names.ts';

/** Bytes of one prompt's file; tokenizers cut long before. */
const MAX_PROMPT_BYTES = 16 * 1024;
/** All but tab, line feed and carriage return: a file that has one is no text. */
const CONTROL = /(?![\t\n\r])\p{Cc}/u;
/** More than a person reads at once. */
const MAX_LISTED = 100;
const MAX_WARNINGS = 100;

export interface CheckedDataset {
  /** In order of path. */
  files: NewDatasetFile[];
  warnings: string[];
}

interface Placed extends EntryPath {
  entry: UploadedEntry;
}

/**
 * Reads every file of an upload once and gives those that make the dataset.
 * @throws AtelierError `dataset_invalid` with every problem under the name of its file; `payload_too_large` when there
 * are too many images or bytes in all
 */
export async function checkDataset(
  entries: readonly UploadedEntry[],
  limits: DatasetLimits,
): Promise<CheckedDataset> {
  const problems: FieldError[] = [];
  const { placed, skipped } = place(entries, problems);
  const images = placed.filter(({ kind }) => kind === 'image');
  if (images.length > limits.maxImages) throw tooManyFiles(images.length, limits);
  problems.push(...missing(placed));

  const files: NewDatasetFile[] = [];
  const warnings = skipped.length > 0 ? [`left out: ${some(skipped)}`] : [];
  let left = limits.maxBytes;
  for (const item of placed.filter(({ entry }) => entry.refusal === null)) {
    const limit = item.kind === 'image' ? limits.maxImageBytes : MAX_PROMPT_BYTES;
    try {
      const bytes = await item.entry.read(Math.min(limit, left));
      left -= bytes.length;
      files.push(item.kind === 'image' ? checkImage(item, bytes, warnings) : checkPrompt(item, bytes));
    } catch (error) {
      if (!(error instanceof EntryError)) throw error;
      if (error instanceof EntryTooLargeError && left < limit) throw tooLarge(limits);
      left -= error.bytesRead;
      if (left < 0) throw tooLarge(limits);
      problems.push({ field: item.entry.name, message: error.message });
    }
  }
  if (problems.length > 0) throw invalidDataset(problems);
  if (warnings.length > MAX_WARNINGS)
    warnings.splice(MAX_WARNINGS, Infinity, `and ${warnings.length - MAX_WARNINGS} more`);
  return { files: files.toSorted((a, b) => (a.file.path < b.file.path ? -1 : 1)), warnings };
}

/** Sorts entries into images and prompts by their names. */
function place(
  entries: readonly UploadedEntry[],
  problems: FieldError[],
): { placed: Placed[]; skipped: string[] } {
  const placed = new Map<string, Placed>();
  const skipped: string[] = [];
  for (const entry of entries) {
    const { name } = entry;
    const verdict = judgeName(name);
    if ('skipped' in verdict) {
      if (!name.endsWith('/')) skipped.push(name);
      continue;
    }
    const refused = 'refused' in verdict ? verdict.refused : entry.refusal;
    if (refused !== null) problems.push({ field: name, message: refused });
    if ('refused' in verdict) continue;
    const key = `${verdict.kind} ${verdict.stem}`;
    const other = placed.get(key);
    if (other) {
      const message =
        other.entry.name === name ? 'is there twice' : `has the number of ${other.entry.name} too`;
      problems.push({ field: name, message });
    } else {
      // Also what is refused: its prompt or image is not at fault.
      placed.set(key, { ...verdict, entry });
    }
  }
  return { placed: [...placed.values()], skipped };
}

/** Images without a prompt, prompts without an image, or nothing at all. */
function missing(placed: readonly Placed[]): FieldError[] {
  if (placed.length === 0) return [{ field: 'images', message: 'found none, needed is at least one' }];
  const stems = Map.groupBy(placed, ({ stem }) => stem);
  return placed
    .filter(({ stem }) => stems.get(stem)!.length === 1)
    .map(({ kind, stem, entry: { name } }) => ({
      field: name,
      message:
        kind === 'image' ? `has no prompt: prompts/${stem}.txt is missing` : 'is the prompt of no image',
    }));
}

function checkImage({ path, entry }: Placed, bytes: Buffer, warnings: string[]): NewDatasetFile {
  const header = readImageHeader(bytes);
  if (!header) throw new EntryError('is not a PNG, JPEG or WebP picture', bytes.length);
  const { contentType, width, height } = header;
  if (width * height > MAX_IMAGE_PIXELS)
    throw new EntryError(
      `found ${width} x ${height} pixels, allowed are at most ${MAX_IMAGE_PIXELS}`,
      bytes.length,
    );
  const named = path.endsWith('.png') ? 'image/png' : path.endsWith('.webp') ? 'image/webp' : 'image/jpeg';
  if (named !== contentType) warnings.push(`${path} is ${contentType}, its name says ${named}`);
  return stored({ path, ...digest(bytes), width, height }, contentType, entry);
}

function checkPrompt({ path, entry }: Placed, bytes: Buffer): NewDatasetFile {
  const text = decodeUtf8(bytes);
  if (text === null || CONTROL.test(text)) throw new EntryError('is not text in UTF-8', bytes.length);
  if (text.trim() === '') throw new EntryError('is empty', bytes.length);
  return stored({ path, ...digest(bytes) }, 'text/plain', entry);
}

function stored(file: DatasetFile, contentType: string, entry: UploadedEntry): NewDatasetFile {
  return { file, contentType, read: () => entry.read(file.size) };
}

const digest = (bytes: Buffer) => ({
  size: bytes.length,
  sha256: createHash('sha256').update(bytes).digest('hex'),
});

function decodeUtf8(bytes: Buffer): string | null {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

function invalidDataset(problems: readonly FieldError[]): AtelierError {
  const errors = problems
    .slice(0, MAX_LISTED)
    .map(({ field, message }) => ({ field: field.slice(0, 200), message }));
  const rest = problems.length > MAX_LISTED ? `, the first ${MAX_LISTED} of them listed` : '';
  const count = problems.length === 1 ? '1 problem' : `${problems.length} problems${rest}`;
  const [{ field, message }] = errors as [FieldError];
  return new AtelierError('dataset_invalid', `${count}; ${field}: ${message}`, { errors });
}

function tooLarge({ maxBytes }: DatasetLimits): AtelierError {
  return new AtelierError(
    'payload_too_large',
    `body: unpacked there are more than the ${maxBytes} bytes that are allowed`,
  );
}

const some = (names: readonly string[]): string =>
  names.slice(0, 3).join(', ') + (names.length > 3 ? ` and ${names.length - 3} more` : '');
