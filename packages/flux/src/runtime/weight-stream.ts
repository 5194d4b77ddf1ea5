import type { FileHandle } from 'node:fs/promises';
import { openRegular, readInto, uninitialized } from '../checkpoint/files.ts';
import { elementBytes, streamedFeeds } from '../graph/streamed-weights.ts';
import type { LocatedTensor } from '../graph/weights.ts';
import type { Feed } from './session.ts';

/** A weight of a unit: the name that the unit's graph has for it, and where it lies. */
export interface StreamedWeight {
  readonly name: string;
  readonly located: LocatedTensor;
}

/** What one run of a graph is fed: the weights of a layer or of a block. */
export type WeightUnit = readonly StreamedWeight[];

/** One request to the operating system; several are under way at once, on the threads of libuv. */
const READ_BYTES = 16 * 1024 * 1024;
/** Holes between two weights that are read over; past this a read of its own is cheaper. */
const MAX_GAP = 4096;
/** Start of a run in its buffer: fits every element type. */
const ALIGNMENT = 64;

/** Neighbouring weights that are read as one: bytes of a file, and where they go in the unit's buffer. */
interface Run {
  readonly file: string;
  readonly offset: number;
  readonly at: number;
  byteLength: number;
}

interface UnitPlan {
  readonly runs: readonly Run[];
  readonly weights: readonly (StreamedWeight & { readonly at: number })[];
  readonly byteLength: number;
}

/**
 * Reads units of weights in order, each while the one before it is in use. A pass has two units in memory, in buffers
 * that later passes use again.
 *
 * All requests of a unit are made at once, before its predecessor is handed out: a session blocks the thread that
 * would make further ones, and only what the threads of libuv have by then goes on meanwhile.
 */
export class WeightStream {
  readonly #plans: readonly UnitPlan[];
  readonly #bufferBytes: number;
  readonly #spare: Uint8Array[] = [];
  #files: Promise<ReadonlyMap<string, FileHandle>> | null = null;

  constructor(units: readonly WeightUnit[]) {
    this.#plans = units.map(planUnit);
    this.#bufferBytes = this.#plans.reduce((most, { byteLength }) => Math.max(most, byteLength), 0);
  }

  /**
   * The feeds of every unit in turn; those of one are gone when the next are asked for.
   * @throws FluxError checkpoint_missing, checkpoint_invalid when a file is gone or shorter than it was
   */
  async *pass(): AsyncGenerator<Record<string, Feed>, void, void> {
    const files = await this.#open();
    const buffers = [this.#buffer(), this.#buffer()] as const;
    const read = (i: number): Promise<void> => {
      const reading = readUnit(this.#plans[i]!, files, buffers[i % 2]!);
      // Awaited only after the unit before it was used; until then a failure is no unhandled rejection.
      reading.catch(() => {});
      return reading;
    };
    let reading = Promise.resolve();
    try {
      if (this.#plans.length > 0) reading = read(0);
      for (const [i, plan] of this.#plans.entries()) {
        await reading;
        if (i + 1 < this.#plans.length) reading = read(i + 1);
        yield feedsOf(plan, buffers[i % 2]!);
      }
    } finally {
      // What still is being read must not land in a buffer that the next pass has taken.
      await reading.catch(() => {});
      this.#spare.push(...buffers);
    }
  }

  /** Closes the files and lets the buffers go; no pass may be under way. */
  async close(): Promise<void> {
    const files = await this.#files?.catch(() => null);
    this.#files = null;
    this.#spare.length = 0;
    for (const handle of files?.values() ?? []) await handle.close();
  }

  #buffer(): Uint8Array {
    return this.#spare.pop() ?? uninitialized(this.#bufferBytes);
  }

  #open(): Promise<ReadonlyMap<string, FileHandle>> {
    this.#files ??= openAll(new Set(this.#plans.flatMap(({ runs }) => runs.map(({ file }) => file)))).catch(
      (error: unknown) => {
        this.#files = null;
        throw error;
      },
    );
    return this.#files;
  }
}

async function openAll(paths: ReadonlySet<string>): Promise<ReadonlyMap<string, FileHandle>> {
  const files = new Map<string, FileHandle>();
  try {
    for (const path of paths) files.set(path, await openRegular(path));
    return files;
  } catch (error) {
    for (const handle of files.values()) await handle.close();
    throw error;
  }
}

/** Places the weights of a unit in a buffer, in the order of the files, so that neighbours become one run. */
function planUnit(unit: WeightUnit): UnitPlan {
  const sorted = [...unit].sort(
    ({ located: a }, { located: b }) =>
      (a.file < b.file ? -1 : a.file > b.file ? 1 : 0) || a.offset - b.offset,
  );
  const runs: Run[] = [];
  let end = 0;
  const weights = sorted.map((weight) => {
    const { file, offset, byteLength } = weight.located;
    let run = runs.at(-1);
    if (!run || !continues(run, weight.located)) {
      run = { file, offset, byteLength: 0, at: Math.ceil(end / ALIGNMENT) * ALIGNMENT };
      runs.push(run);
    }
    run.byteLength = Math.max(run.byteLength, offset + byteLength - run.offset);
    end = run.at + run.byteLength;
    return { ...weight, at: run.at + offset - run.offset };
  });
  return { runs, weights, byteLength: end };
}

/** Whether the bytes follow those of the run, at a distance that keeps their elements aligned. */
function continues(run: Run, located: LocatedTensor): boolean {
  const distance = located.offset - run.offset;
  return (
    run.file === located.file &&
    distance <= run.byteLength + MAX_GAP &&
    distance % elementBytes(located) === 0
  );
}

async function readUnit(
  { runs }: UnitPlan,
  files: ReadonlyMap<string, FileHandle>,
  buffer: Uint8Array,
): Promise<void> {
  const reads = runs.flatMap(({ file, offset, byteLength, at }) =>
    Array.from({ length: Math.ceil(byteLength / READ_BYTES) }, (_, i) => {
      const from = i * READ_BYTES;
      const target = buffer.subarray(at + from, at + Math.min(from + READ_BYTES, byteLength));
      return readInto(files.get(file)!, file, target, offset + from);
    }),
  );
  // All of them, also after a failure: the buffer is not free before.
  const results = await Promise.allSettled(reads);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

function feedsOf({ weights }: UnitPlan, buffer: Uint8Array): Record<string, Feed> {
  return Object.assign(
    {},
    ...weights.map(({ name, located, at }) =>
      streamedFeeds(name, located, buffer.subarray(at, at + located.byteLength)),
    ),
  ) as Record<string, Feed>;
}
