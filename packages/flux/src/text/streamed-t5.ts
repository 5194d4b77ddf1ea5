import { decodeFloat32, type FloatDtype } from '../checkpoint/dtypes.ts';
import { readInto, uninitialized, withFile } from '../checkpoint/files.ts';
import type { T5Spec } from '../checkpoint/spec.ts';
import type { GraphModel, Value } from '../graph/builder.ts';
import { add, attention, geluTanh, linear, mul, rmsNorm } from '../graph/ops.ts';
import { buildStreamed, cast } from '../graph/streamed-weights.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { NO_DELTAS } from '../lora/compose.ts';
import { type BuildStreamed, StreamedGraph } from '../runtime/streamed-graph.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { WeightStream } from '../runtime/weight-stream.ts';
import type { T5Encoder } from './t5-encoder.ts';
import { bucketFeed, positionBias, RELATIVE_BIAS } from './t5.ts';

/**
 * T5 of which only one layer is on the device, and nothing between two texts: each layer is read from the checkpoint
 * when its turn comes, while the one before it runs. Hidden states [T, modelDim] return to the host between layers.
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
    const layer = this.#graph('t5-layer', (from) => buildT5Layer(this.#spec, from, this.#compute));
    // Not worth a context of its own on a device.
    const norm = this.#graph('t5-norm', (from) => buildNorm(this.#spec, from), { provider: 'cpu' });
    const units = Array.from({ length: layers }, (_, i) =>
      // All layers use the table of the first.
      layer.unit((name) =>
        name === RELATIVE_BIAS ? name : name.replace('encoder.block.0.', `encoder.block.${i}.`),
      ),
    );
    const last = norm.unit();
    const stream = new WeightStream([...units, last].map(({ weights }) => weights));
    try {
      let data = await this.#embed(ids);
      let index = 0;
      for await (const weights of stream.pass()) {
        const unit = units[index++];
        const x = { data, dims };
        const result = unit
          ? await layer.run(unit, { x, buckets, ...weights }, ['hidden'], NO_DELTAS)
          : await norm.run(last, { x, ...weights }, ['hidden'], NO_DELTAS);
        data = result.hidden.data;
      }
      return data;
    } finally {
      await stream.close();
      await layer.release();
      await norm.release();
    }
  }

  async release(): Promise<void> {}

  #graph(name: string, build: BuildStreamed, options: SessionOptions = {}): StreamedGraph {
    return new StreamedGraph(name, this.#locator, build, { ...this.#options, ...options });
  }

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
 * x [T, modelDim], buckets int64 [T, T] -> hidden [T, modelDim], after one layer; weights are named as in layer 0.
 *
 * With `compute` float16 the residual stream, its norms and the feed-forward's last product stay fp32: in T5-XXL they
 * exceed 65504. transformers keeps `wo` in fp32 for the same reason (`_keep_in_fp32_modules`).
 */
export function buildT5Layer(spec: T5Spec, locator: WeightLocator, compute: ComputeType): GraphModel {
  return buildStreamed('t5-layer', locator, compute, (g, weights) => {
    const x = g.input('x', 'float32', ['T', spec.modelDim]);
    const buckets = g.input('buckets', 'int64', ['T', 'T']);
    const norm = (value: Value, path: string): Value =>
      cast(g, rmsNorm(g, value, weights.get(`${path}.weight`, 'float32'), spec.layerNormEps), compute);
    const apply = (value: Value, path: string, type: ComputeType = compute): Value =>
      linear(g, value, weights.get(`${path}.weight`, type), null);

    const attn = 'encoder.block.0.layer.0.SelfAttention';
    const normed = norm(x, 'encoder.block.0.layer.0.layer_norm');
    const attended = attention(
      g,
      apply(normed, `${attn}.q`),
      apply(normed, `${attn}.k`),
      apply(normed, `${attn}.v`),
      { heads: spec.numHeads, scale: 1, bias: positionBias(g, weights.get(RELATIVE_BIAS), buckets) },
    );
    const middle = add(g, x, cast(g, apply(attended, `${attn}.o`), 'float32'));

    const dense = 'encoder.block.0.layer.1.DenseReluDense';
    const inner = norm(middle, 'encoder.block.0.layer.1.layer_norm');
    const gate = cast(g, geluTanh(g, apply(inner, `${dense}.wi_0`)), 'float32');
    const gated = mul(g, gate, cast(g, apply(inner, `${dense}.wi_1`), 'float32'));
    g.output('hidden', add(g, middle, apply(gated, `${dense}.wo`, 'float32')));
  });
}

/** x [T, modelDim] -> hidden [T, modelDim]. */
function buildNorm(spec: T5Spec, locator: WeightLocator): GraphModel {
  return buildStreamed('t5-norm', locator, 'float32', (g, weights) => {
    const x = g.input('x', 'float32', ['T', spec.modelDim]);
    g.output('hidden', rmsNorm(g, x, weights.get('encoder.final_layer_norm.weight'), spec.layerNormEps));
  });
}
