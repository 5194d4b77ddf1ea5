import type { TransformerSpec } from '../checkpoint/spec.ts';
import { type LoraGroup, loraFeeds, type WeightedDeltas } from '../graph/device-lora.ts';
import { type ComputeType, readVector, type WeightLocator } from '../graph/weights.ts';
import type { Reserve } from '../runtime/reserve.ts';
import { type Feed, flag, GraphSession, type SessionOptions } from '../runtime/session.ts';
import { buildDeviceTokenPath, loraGroups, type LoraSet } from './device-graph.ts';
import { modulationLayout } from './modulation.ts';
import type { Rows, TokenPath, TokenPathFeeds } from './parts.ts';

/** Memory of a device where it is scarce. */
export interface StepRoom {
  /** What steps and their inputs may take. */
  bytes: number;
  /** Held while they run. */
  reserve: Pick<Reserve, 'hold' | 'free'>;
}

/** A run with LoRAs takes about so long at most; a job is told of its progress, and can be canceled, between runs. */
const RUN_MS = 800;

/**
 * The token path in the memory of a device, where all jobs share it: LoRAs are inputs of a run. Copying them costs
 * about a tenth of a step on a fast card, so several steps share a run there.
 */
export class DeviceTokenPath implements TokenPath {
  readonly #session: GraphSession;
  readonly #groups: Record<LoraSet, readonly LoraGroup[]>;
  readonly #compute: ComputeType;
  readonly #biases: ReadonlyMap<string, Float32Array>;
  readonly #reserve: StepRoom['reserve'] | null;
  readonly #without: Record<LoraSet, Record<string, Feed>>;
  /** Inputs for the LoRAs of the latest job, which the next one often shares. */
  #adapted: { parts: readonly WeightedDeltas[]; feeds: Record<string, Feed> } | null = null;
  /** Of one step at the latest size; 0 when unknown. */
  #stepMs = 0;
  #tokens = 0;

  private constructor(
    session: GraphSession,
    groups: Record<LoraSet, readonly LoraGroup[]>,
    compute: ComputeType,
    biases: ReadonlyMap<string, Float32Array>,
    reserve: StepRoom['reserve'] | null,
  ) {
    this.#session = session;
    this.#groups = groups;
    this.#compute = compute;
    this.#biases = biases;
    this.#reserve = reserve;
    const empty = (set: LoraSet): Record<string, Feed> =>
      loraFeeds(set, groups[set], null, () => null, compute);
    this.#without = { all: empty('all'), attention: empty('attention') };
  }

  /**
   * @param room on a device where it is scarce: what steps may take, and what is kept from them while they run
   */
  static async load(
    spec: TransformerSpec,
    locator: WeightLocator,
    compute: ComputeType,
    options: SessionOptions,
    room: StepRoom | null = null,
  ): Promise<DeviceTokenPath> {
    const graph = buildDeviceTokenPath(spec, locator, compute);
    const session = await GraphSession.create('token-path', graph, options);
    const groups = {
      all: loraGroups(spec, locator, 'all'),
      attention: loraGroups(spec, locator, 'attention'),
    };
    const biases = new Map<string, Float32Array>();
    for (const path of groups.all.flatMap(({ paths }) => paths))
      if (locator.has(`${path}.bias`)) biases.set(path, readVector(locator.locate(`${path}.bias`)));
    const path = new DeviceTokenPath(session, groups, compute, biases, room?.reserve ?? null);
    if (room) await path.#claim(spec, room.bytes);
    return path;
  }

  /**
   * Has the session's arena take its memory in one piece, by a run of no steps that asks for so much. An arena that
   * grows as it is asked doubles what it takes each time, and its first pieces are too small for what comes later.
   */
  async #claim(spec: TransformerSpec, bytes: number): Promise<void> {
    const row = (width: number): Rows => ({ data: new Float32Array(width), dims: [1, width] });
    const none = { data: new Float32Array(0), dims: [0, modulationLayout(spec).size] };
    const angles = { data: new Float32Array(spec.headDim), dims: [2, spec.headDim / 2] };
    const feeds = {
      latents: row(spec.inChannels),
      context: row(spec.hiddenSize),
      modulation: none,
      cos: angles,
      sin: angles,
    };
    await this.#run(feeds, new Float32Array(0), [], Math.ceil(bytes / Float32Array.BYTES_PER_ELEMENT));
  }

  stepsPerRun(tokens: number, parts: readonly WeightedDeltas[]): number {
    if (parts.length === 0 || this.#stepMs === 0 || tokens !== this.#tokens) return 1;
    return Math.max(1, Math.floor(RUN_MS / this.#stepMs));
  }

  async advance(
    feeds: TokenPathFeeds,
    lengths: Float32Array,
    { parts }: { parts: readonly WeightedDeltas[] },
  ): Promise<Float32Array> {
    await this.#reserve?.hold();
    const started = performance.now();
    const denoised = await this.#run(feeds, lengths, parts, 0);
    this.#stepMs = (performance.now() - started) / lengths.length;
    this.#tokens = feeds.latents.dims[0]!;
    return denoised;
  }

  async #run(
    feeds: TokenPathFeeds,
    lengths: Float32Array,
    parts: readonly WeightedDeltas[],
    room: number,
  ): Promise<Float32Array> {
    const adapted = parts.length > 0;
    const { denoised } = await this.#session.run(
      {
        ...feeds,
        ...this.#without.all,
        ...this.#without.attention,
        ...(adapted ? this.#feeds(parts) : {}),
        deltas: { data: lengths, dims: [lengths.length] },
        adapted: flag(adapted),
        wide: flag(adapted && this.#set(parts) === 'all'),
        room: { data: BigInt64Array.of(BigInt(room)), dims: [1] },
      },
      ['denoised', 'room.size'],
    );
    return denoised.data;
  }

  /** LoRAs are inputs here; weights are not changed. */
  withWeights(): Promise<TokenPath> {
    return Promise.reject(new Error('a token path on a device takes LoRAs as inputs'));
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  /** The smallest set that has all modules of the LoRAs. */
  #set(parts: readonly WeightedDeltas[]): LoraSet {
    const narrow = new Set(this.#groups.attention.flatMap(({ paths }) => paths));
    const others = this.#groups.all.flatMap(({ paths }) => paths).filter((path) => !narrow.has(path));
    const isWide = parts.some(({ deltas }) => others.some((module) => deltas.has(module)));
    return isWide ? 'all' : 'attention';
  }

  #feeds(parts: readonly WeightedDeltas[]): Record<string, Feed> {
    if (this.#adapted?.parts !== parts) {
      // The old ones are gone before the new ones are made: hundreds of MB each.
      this.#adapted = null;
      const bias = (path: string): Float32Array | null => this.#biases.get(path) ?? null;
      const set = this.#set(parts);
      const feeds = loraFeeds(set, this.#groups[set], parts, bias, this.#compute);
      this.#adapted = { parts, feeds };
    }
    return this.#adapted.feeds;
  }
}
