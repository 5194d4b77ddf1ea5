import { decodeFloat32, type FloatDtype } from '../checkpoint/dtypes.ts';
import { readInto, uninitialized, withFile } from '../checkpoint/files.ts';
import type { T5Spec } from '../checkpoint/spec.ts';
import type { GraphBuilder, Value } from '../graph/builder.ts';
import { add, attention, cast, mul, rmsNorm } from '../graph/ops.ts';
import type { UnitKind } from '../graph/streamed-units.ts';
import type { StreamedWeights } from '../graph/streamed-weights.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { NO_DELTAS } from '../lora/compose.ts';
import { StreamedGraph, type StreamedSession } from '../runtime/streamed-graph.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { WeightStream } from '../runtime/weight-stream.ts';
import type { T5Encoder } from './t5-encoder.ts';
import { bucketFeed, positionBias, RELATIVE_BIAS } from './t5.ts';

/**
 * T5 of which only half a layer is on the device, its attention or its feed-forward, and nothing between two texts:
 * each half is read from the checkpoint when its turn comes, while the one before it runs. Hidden states
 * [T, modelDim] return to the host in between.
 */
export class StreamedT5 implements T5Encoder {
  readonly #spec: T5Spec;
  readonly #locator: WeightLocator;
  readonly #compute: ComputeType;
  readonly #options: SessionOptions;

  /** @param compute of the products, but for those that leave the range of fp16 in T5-XXL */
  constructor(spec: T5Spec, locator: WeightLocator, compute: ComputeType, options: SessionOptions) {
    this.#spec = spec;
    this.#locator = locator;
    this.#compute = compute;
    this.#options = options;
  }

  async hidden(ids: readonly number[]): Promise<Float32Array> {
    const { layers, modelDim } = this.#spec;
    const dims = [ids.length, modelDim];
    const buckets = bucketFeed(ids.length, this.#spec);
    const graph = new StreamedGraph('t5', this.#locator, t5Kinds(this.#spec, this.#compute), this.#options);
    const units = Array.from({ length: layers }, (_, i) => {
      // All layers use the table of the first.
      const rename = (name: string): string =>
        name === RELATIVE_BIAS ? name : name.replace('encoder.block.0.', `encoder.block.${i}.`);
      return [graph.unit('attention', rename), graph.unit('feedForward', rename)];
    }).flat();
    units.push(graph.unit('norm'));
    const stream = new WeightStream(units.map(({ weights }) => weights));
    let session: StreamedSession | null = null;
    try {
      let data = await this.#embed(ids);
      let index = 0;
      for await (const weights of stream.pass()) {
        // Only now, when the second unit is being read: making it blocks the thread.
        session ??= await graph.open(units, NO_DELTAS);
        const unit = units[index++]!;
        const inputs = { x: { data, dims }, ...(unit.kind === 'attention' ? { buckets } : {}) };
        data = (await session.run(unit, { ...inputs, ...weights }, ['hidden'])).hidden.data;
      }
      return data;
    } finally {
      await stream.close();
      await session?.release();
    }
  }

  async release(): Promise<void> {}

  /** Rows of the embedding [ids.length, modelDim]; nothing else of the table is read. */
  async #embed(ids: readonly number[]): Promise<Float32Array> {
    const { modelDim, vocabSize } = this.#spec;
    const { file, offset, byteLength, dtype, scale } = this.#locator.locate('shared.weight');
    const rowBytes = byteLength / vocabSize;
    const out = new Float32Array(ids.length * modelDim);
    const rows = new Map<number, Float32Array>();
    await withFile(file, async (handle) => {
      for (const [position, id] of ids.entries()) {
        if (!(id >= 0 && id < vocabSize)) throw new RangeError(`token ${id} of a vocabulary of ${vocabSize}`);
        let row = rows.get(id);
        if (!row) {
          const bytes = uninitialized(rowBytes);
          await readInto(handle, file, bytes, offset + id * rowBytes);
          row = decodeFloat32(dtype as FloatDtype, bytes, scale ?? 1);
          rows.set(id, row);
        }
        out.set(row, position * modelDim);
      }
    });
    return out;
  }
}

/**
 * The units of T5, all x [T, modelDim] -> hidden [T, modelDim]; weights are named as in layer 0. Attention also takes
 * buckets int64 [T, T].
 *
 * With `compute` float16 the residual stream, its norms and the feed-forward's last product stay fp32: in T5-XXL they
 * exceed 65504. transformers keeps `wo` in fp32 for the same reason (`_keep_in_fp32_modules`).
 */
export function t5Kinds(
  spec: T5Spec,
  compute: ComputeType,
): Record<'attention' | 'feedForward' | 'norm', UnitKind> {
  const input = (g: GraphBuilder): Value => g.input('x', 'float32', ['T', spec.modelDim]);
  const norm = (g: GraphBuilder, weights: StreamedWeights, x: Value, path: string): Value =>
    rmsNorm(g, x, weights.get(`${path}.weight`, 'float32'), spec.layerNormEps);
  return {
    attention: {
      compute,
      build(g, linears, weights) {
        const x = input(g);
        const buckets = g.input('buckets', 'int64', ['T', 'T']);
        const path = 'encoder.block.0.layer.0.SelfAttention';
        const normed = cast(g, norm(g, weights, x, 'encoder.block.0.layer.0.layer_norm'), compute);
        const [q, k, v] = linears.applyAll(
          normed,
          ['q', 'k', 'v'].map((name) => `${path}.${name}`),
        ) as [Value, Value, Value];
        const bias = positionBias(g, weights.get(RELATIVE_BIAS), buckets);
        const attended = attention(g, q, k, v, { heads: spec.numHeads, scale: 1, bias });
        return { hidden: add(g, x, cast(g, linears.apply(attended, `${path}.o`), 'float32')) };
      },
    },
    feedForward: {
      compute,
      build(g, linears, weights) {
        const x = input(g);
        const path = 'encoder.block.0.layer.1.DenseReluDense';
        const normed = cast(g, norm(g, weights, x, 'encoder.block.0.layer.1.layer_norm'), compute);
        const gate = cast(g, linears.applyGelu(normed, `${path}.wi_0`), 'float32');
        const gated = mul(g, gate, cast(g, linears.apply(normed, `${path}.wi_1`), 'float32'));
        return { hidden: add(g, x, linears.apply(gated, `${path}.wo`)) };
      },
    },
    norm: {
      compute: 'float32',
      build: (g, _, weights) => ({ hidden: norm(g, weights, input(g), 'encoder.final_layer_norm') }),
    },
  };
}
