import { createHash } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join, parse } from 'node:path';
import { throwIfCanceled } from './canceled.ts';
import { ImageProblem, inspectImage, type InspectedImage } from './image.ts';
import { datasetInvalid, type DatasetProblem } from './problems.ts';

/** A picture with its caption, both checked. */
export interface DatasetPair {
  /** Name of both files without their extensions. */
  readonly stem: string;
  /** Absolute path of the picture. */
  readonly image: string;
  /** Of the picture's file. */
  readonly sha256: string;
  /** Pixels, upright. */
  readonly width: number;
  readonly height: number;
  /** On one line, not empty. */
  readonly caption: string;
}

export interface ReadDatasetOptions {
  /** Side of the square whose area pictures are trained at, in pixels; those of less than a quarter are refused. */
  readonly resolution: number;
  /** Go on with the pairs that have no problem, as long as there is one. */
  readonly skipBad?: boolean;
  /** Pictures checked so far. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

const IMAGES = 'images';
const PROMPTS = 'prompts';
const EXTENSIONS: readonly string[] = Object.freeze(['.png', '.jpg', '.jpeg', '.webp']);
const PROMPT_EXTENSION = '.txt';
/** What desktops leave in folders, besides names that start with a dot. */
const CLUTTER: readonly string[] = Object.freeze(['thumbs.db', 'desktop.ini']);
/** Below this a picture has next to nothing to learn from, whatever the resolution. */
const MIN_SIDE = 64;
/** A caption has some hundred bytes; the tokenizers cut it at some hundred tokens. */
const MAX_PROMPT_BYTES = 65_536;
/** Enough for any picture that is small enough to be decoded. */
const MAX_IMAGE_BYTES = 256 * 1024 * 1024;

const byName = new Intl.Collator('en', { numeric: true });
const compareNames = (a: string, b: string): number => byName.compare(a, b) || (a < b ? -1 : 1);

/** A picture as it is checked, with what is wrong with it so far. */
interface Candidate {
  readonly name: string;
  readonly stem: string;
  sha256: string;
  inspected: InspectedImage | null;
  caption: string;
  readonly problems: DatasetProblem[];
}

/**
 * Reads a folder with `images/NAME.png` (or jpg, jpeg, webp) and `prompts/NAME.txt`, in natural order of the names,
 * and checks all of it: whatever a training would stumble over is found here, each problem with its file.
 *
 * Pictures are decoded one at a time, so that memory holds one of the largest allowed size.
 *
 * @returns the pairs without a problem; problems are only returned with `skipBad`
 * @throws FluxError `dataset_invalid`, whose details have `problems`, and `canceled`
 */
export async function readDataset(
  folder: string,
  options: ReadDatasetOptions,
): Promise<{ pairs: DatasetPair[]; problems: DatasetProblem[] }> {
  const general: DatasetProblem[] = [];
  const images = await listFolder(folder, IMAGES, general);
  const prompts = await listFolder(folder, PROMPTS, general);
  const promptOf = new Map(
    prompts
      .map((name) => parse(name))
      .filter(({ ext }) => ext.toLowerCase() === PROMPT_EXTENSION)
      .map(({ name, base }) => [name, base]),
  );

  const candidates: Candidate[] = [];
  for (const name of images) {
    throwIfCanceled(options.signal);
    const { name: stem, ext } = parse(name);
    if (!EXTENSIONS.includes(ext.toLowerCase())) {
      const problem = `has ${ext ? `the extension ${ext}` : 'no extension'}; allowed are ${EXTENSIONS.join(', ')}`;
      general.push({ file: `${IMAGES}/${name}`, problem });
      continue;
    }
    const candidate: Candidate = { name, stem, sha256: '', inspected: null, caption: '', problems: [] };
    candidates.push(candidate);
    await checkImage(folder, candidate, options.resolution);
    await checkPrompt(folder, candidate, promptOf.get(stem));
    options.onProgress?.(candidates.length, images.length);
  }
  if (images.length === 0 && general.every(({ file }) => file !== IMAGES))
    general.push({ file: IMAGES, problem: 'has no picture' });

  const stems = new Set(candidates.map(({ stem }) => stem));
  for (const [stem, name] of promptOf)
    if (!stems.has(stem)) general.push({ file: `${PROMPTS}/${name}`, problem: 'has no picture in images' });
  markRepeated(
    candidates,
    ({ stem }) => stem,
    (_, kept) => `has the stem of ${IMAGES}/${kept.name}; a prompt belongs to one picture`,
  );
  markRepeated(
    candidates,
    ({ inspected }) => inspected && inspected.pixelHash,
    ({ sha256 }, kept) =>
      `${sha256 === kept.sha256 ? 'has the same bytes as' : 'shows the same pixels as'} ${IMAGES}/${kept.name}`,
  );

  const problems = [...general, ...candidates.flatMap((candidate) => candidate.problems)].sort((a, b) =>
    compareNames(a.file, b.file),
  );
  const pairs = candidates.filter((candidate) => candidate.problems.length === 0);
  if (pairs.length === 0 || (problems.length > 0 && !options.skipBad)) throw datasetInvalid(problems);
  return {
    pairs: pairs.map(({ name, stem, sha256, inspected, caption }) => ({
      stem,
      image: join(folder, IMAGES, name),
      sha256,
      width: inspected!.width,
      height: inspected!.height,
      caption,
    })),
    problems,
  };
}

/** Names of what a folder holds, in natural order. */
async function listFolder(folder: string, name: string, problems: DatasetProblem[]): Promise<string[]> {
  try {
    const names = await readdir(join(folder, name));
    return names
      .filter((entry) => !entry.startsWith('.') && !CLUTTER.includes(entry.toLowerCase()))
      .sort(compareNames);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const absent = code === 'ENOENT' || code === 'ENOTDIR';
    problems.push({
      file: name,
      problem: absent ? 'is missing; a folder was expected' : `cannot be read (${code})`,
    });
    return [];
  }
}

async function checkImage(folder: string, candidate: Candidate, resolution: number): Promise<void> {
  const file = `${IMAGES}/${candidate.name}`;
  const read = await readBounded(join(folder, file), MAX_IMAGE_BYTES);
  if (typeof read === 'string') {
    candidate.problems.push({ file, problem: read });
    return;
  }
  candidate.sha256 = createHash('sha256').update(read).digest('hex');
  try {
    candidate.inspected = await inspectImage(read);
  } catch (error) {
    if (!(error instanceof ImageProblem)) throw error;
    candidate.problems.push({ file, problem: error.message });
    return;
  }
  const { width, height } = candidate.inspected;
  const least = Math.max(MIN_SIDE, Math.ceil(resolution / 4));
  if (Math.min(width, height) < least) {
    const problem = `has ${width} x ${height} pixels; the shorter side must have at least ${least}`;
    candidate.problems.push({ file, problem });
  }
}

async function checkPrompt(folder: string, candidate: Candidate, name: string | undefined): Promise<void> {
  if (name === undefined) {
    const expected = `${PROMPTS}/${candidate.stem}${PROMPT_EXTENSION}`;
    candidate.problems.push({ file: `${IMAGES}/${candidate.name}`, problem: `has no prompt ${expected}` });
    return;
  }
  const file = `${PROMPTS}/${name}`;
  const read = await readBounded(join(folder, file), MAX_PROMPT_BYTES);
  if (typeof read === 'string') {
    candidate.problems.push({ file, problem: read });
    return;
  }
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(read);
    candidate.caption = text.replaceAll(/\s+/g, ' ').trim();
  } catch {
    candidate.problems.push({ file, problem: 'is not UTF-8' });
    return;
  }
  if (candidate.caption === '') candidate.problems.push({ file, problem: 'is empty' });
}

/** The bytes of a file, or why it cannot be read. */
async function readBounded(path: string, limit: number): Promise<Uint8Array | string> {
  try {
    const found = await stat(path);
    // Looked at before it is opened, since a pipe would hang.
    if (!found.isFile()) return 'is not a regular file';
    if (found.size > limit) return `has ${found.size} bytes; allowed are at most ${limit}`;
    return await readFile(path);
  } catch (cause) {
    return `cannot be read (${(cause as NodeJS.ErrnoException).code})`;
  }
}

/**
 * Of the candidates with the same key one is kept, the first that has no problem if there is such; the others get a
 * problem. A key of null is equal to no other.
 */
function markRepeated(
  candidates: readonly Candidate[],
  key: (candidate: Candidate) => string | null,
  problem: (repeated: Candidate, kept: Candidate) => string,
): void {
  for (const [value, group] of Map.groupBy(candidates, key)) {
    if (value === null || group.length === 1) continue;
    const kept = group.find(({ problems }) => problems.length === 0) ?? group[0]!;
    for (const repeated of group)
      if (repeated !== kept)
        repeated.problems.push({ file: `${IMAGES}/${repeated.name}`, problem: problem(repeated, kept) });
  }
}
