import type { TransformerSpec } from '../checkpoint/spec.ts';
import { type LoraGroup, loraFeeds, type WeightedDeltas } from '../graph/device-lora.ts';
import { type ComputeType, readVector, type WeightLocator } from '../graph/weights.ts';
import { type Feed, GraphSession, type SessionOptions } from '../runtime/session.ts';
import { buildDeviceTokenPath, loraGroups } from './device-graph.ts';
import type { TokenPath, TokenPathFeeds } from './parts.ts';

/** A run with LoRAs takes about so long at most; a job is told of its progress, and can be canceled, between runs. */
const RUN_MS = 800;

/**
 * The token path in the memory of a device, where all jobs share it: LoRAs are inputs of a run. Copying them costs
 * about a tenth of a step on a fast card, so several steps share a run there.
 */
export class DeviceTokenPath implements TokenPath {
  readonly #session: GraphSession;
  readonly #groups: readonly LoraGroup[];
  readonly #compute: ComputeType;
  readonly #biases: ReadonlyMap<string, Float32Array>;
  readonly #without: Record<string, Feed>;
  /** Inputs for the LoRAs of the latest job, which the next one often shares. */
  #adapted: { parts: readonly WeightedDeltas[]; feeds: Record<string, Feed> } | null = null;
  /** Of one step at the latest size; 0 when unknown. */
  #stepMs = 0;
  #tokens = 0;

  private constructor(
    session: GraphSession,
    groups: readonly LoraGroup[],
    compute: ComputeType,
    biases: ReadonlyMap<string, Float32Array>,
  ) {
    this.#session = session;
    this.#groups = groups;
    this.#compute = compute;
    this.#biases = biases;
    this.#without = loraFeeds(groups, null, () => null, compute);
  }

  static async load(
    spec: TransformerSpec,
    locator: WeightLocator,
    compute: ComputeType,
    options: SessionOptions,
  ): Promise<DeviceTokenPath> {
    const graph = buildDeviceTokenPath(spec, locator, compute);
    const session = await GraphSession.create('token-path', graph, options);
    const groups = loraGroups(spec, locator);
    const biases = new Map<string, Float32Array>();
    for (const path of groups.flatMap(({ paths }) => paths))
      if (locator.has(`${path}.bias`)) biases.set(path, readVector(locator.locate(`${path}.bias`)));
    return new DeviceTokenPath(session, groups, compute, biases);
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
    const adapted = parts.length > 0;
    const loras = adapted ? this.#feeds(parts) : this.#without;
    const started = performance.now();
    const { denoised } = await this.#session.run(
      {
        ...feeds,
        ...loras,
        deltas: { data: lengths, dims: [lengths.length] },
        adapted: { type: 'bool', data: Uint8Array.of(adapted ? 1 : 0), dims: [] },
      },
      ['denoised'],
    );
    this.#stepMs = (performance.now() - started) / lengths.length;
    this.#tokens = feeds.latents.dims[0]!;
    return denoised.data;
  }

  /** LoRAs are inputs here; weights are not changed. */
  withWeights(): Promise<TokenPath> {
    return Promise.reject(new Error('a token path on a device takes LoRAs as inputs'));
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  #feeds(parts: readonly WeightedDeltas[]): Record<string, Feed> {
    if (this.#adapted?.parts !== parts) {
      // The old ones are gone before the new ones are made: hundreds of MB each.
      this.#adapted = null;
      const bias = (path: string): Float32Array | null => this.#biases.get(path) ?? null;
      this.#adapted = { parts, feeds: loraFeeds(this.#groups, parts, bias, this.#compute) };
    }
    return this.#adapted.feeds;
  }
}
