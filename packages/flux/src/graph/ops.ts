import { type Dim, ELEMENT_TYPES, type ElementType, type GraphBuilder, type Value } from './builder.ts';

/*
 * The operators that FLUX is made of, one function each. Token tensors are [tokens, channels] (one image per run):
 * Gemm then takes them as they are and adds the bias for free. Where ONNX Runtime has a fused operator it is emitted
 * directly, because its optimiser does not recognise the patterns of diffusion transformers.
 */

const MS = 'com.microsoft';

/** y = x Wᵀ + b. x [T, in], weight [out, in] as torch stores it, bias [out]. */
export function linear(g: GraphBuilder, x: Value, weight: Value, bias: Value | null): Value {
  const [tokens, width] = dims(x, 2, 'linear');
  const [out, inner] = dims(weight, 2, 'linear weight');
  if (inner !== width) throw new Error(`linear: x has ${width} channels, ${weight.name} takes ${inner}`);
  return g.op('Gemm', [x, weight, bias], { type: x.type, shape: [tokens!, out!] }, { transB: 1 });
}

/** y + x Wᵀ. x [T, in], weight [out, in], y [T, out]. */
export function linearOnto(g: GraphBuilder, x: Value, weight: Value, y: Value): Value {
  return g.op('Gemm', [x, weight, y], y, { transB: 1 });
}

/** Layer norm over the last axis; scale and bias [C] may be running values, which is how adaLN is applied for free. */
export function layerNorm(g: GraphBuilder, x: Value, scale: Value, bias: Value, epsilon: number): Value {
  return g.op('LayerNormalization', [x, scale, bias], x, { axis: -1, epsilon: { float: epsilon } });
}

/** x / rms(x) * scale over the last axis, statistics in fp32. */
export function rmsNorm(g: GraphBuilder, x: Value, scale: Value, epsilon: number): Value {
  return g.op('SimplifiedLayerNormalization', [x, scale], x, { axis: -1, epsilon: { float: epsilon } });
}

/** RMS norm of every head on its own. x [T, heads * headDim], scale [headDim]. */
export function headRmsNorm(g: GraphBuilder, x: Value, scale: Value, heads: number, epsilon: number): Value {
  const [tokens, width] = dims(x, 2, 'headRmsNorm');
  const perHead = reshape(g, x, [0, heads, -1], [tokens!, heads, scale.shape[0]!]);
  return reshape(g, rmsNorm(g, perHead, scale, epsilon), [0, -1], [tokens!, width!]);
}

/**
 * Rotates interleaved channel pairs of every head by the angles of its token (RoPE). x [T, heads * headDim];
 * cos and sin [T, headDim / 2].
 */
export function rotary(g: GraphBuilder, x: Value, cos: Value, sin: Value): Value {
  const [tokens, width] = dims(x, 2, 'rotary');
  const batched = reshape(g, x, [1, -1, width as number], [1, tokens!, width!]);
  const start = g.constant(new BigInt64Array([0n]), [1]);
  const turned = g.op('RotaryEmbedding', [batched, start, cos, sin], batched, { interleaved: 1 }, MS);
  return reshape(g, turned, [-1, width as number], [tokens!, width!]);
}

export interface AttentionOptions {
  heads: number;
  /** Factor on the logits; 1 / sqrt(headDim) when absent. */
  scale?: number;
  causal?: boolean;
  /** Added to the logits, [1, heads, T, T]. */
  bias?: Value;
}

/** Multi-head attention of one sequence. q, k, v and the result are [T, heads * headDim]. */
export function attention(g: GraphBuilder, q: Value, k: Value, v: Value, options: AttentionOptions): Value {
  const [tokens, width] = dims(q, 2, 'attention');
  const batch = (x: Value) => reshape(g, x, [1, -1, width as number], [1, x.shape[0]!, width!]);
  const inputs = [batch(q), batch(k), batch(v), null, null, options.bias ?? null];
  const out = g.op(
    'MultiHeadAttention',
    options.bias ? inputs : inputs.slice(0, 3),
    { type: q.type, shape: [1, tokens!, width!] },
    {
      num_heads: options.heads,
      ...(options.scale === undefined ? {} : { scale: { float: options.scale } }),
      ...(options.causal ? { unidirectional: 1 } : {}),
    },
    MS,
  );
  return reshape(g, out, [-1, width as number], [tokens!, width!]);
}

/** GELU in its tanh form (`gelu_new`, `approximate="tanh"`). */
export function geluTanh(g: GraphBuilder, x: Value): Value {
  return g.op('Gelu', [x], x, { approximate: 'tanh' });
}

/** GELU in its exact form, with erf. */
export function geluErf(g: GraphBuilder, x: Value): Value {
  return g.op('Gelu', [x], x);
}

/** x * sigmoid(1.702 x), the activation of OpenAI's CLIP. */
export function quickGelu(g: GraphBuilder, x: Value): Value {
  return g.op('QuickGelu', [x], x, { alpha: { float: 1.702 } }, MS);
}

/** x * sigmoid(x). */
export function silu(g: GraphBuilder, x: Value): Value {
  return g.op('QuickGelu', [x], x, { alpha: { float: 1 } }, MS);
}

export function add(g: GraphBuilder, a: Value, b: Value): Value {
  return g.op('Add', [a, b], { type: a.type, shape: broadcast(a, b) });
}

export function mul(g: GraphBuilder, a: Value, b: Value): Value {
  return g.op('Mul', [a, b], { type: a.type, shape: broadcast(a, b) });
}

/**
 * `target` is what the Reshape node gets (0 copies a size, -1 is inferred), `shape` what is known of the result.
 * ONNX Runtime reshapes without a copy.
 */
export function reshape(g: GraphBuilder, x: Value, target: readonly number[], shape: readonly Dim[]): Value {
  return g.op('Reshape', [x, g.ints(...target)], { type: x.type, shape });
}

export function transpose(g: GraphBuilder, x: Value, perm: readonly number[]): Value {
  return g.op('Transpose', [x], { type: x.type, shape: perm.map((axis) => x.shape[axis]!) }, { perm });
}

export function concat(g: GraphBuilder, values: readonly Value[], axis: number): Value {
  const first = values[0]!;
  const at = axis < 0 ? axis + first.shape.length : axis;
  const shape = first.shape.map((dim, i) => (i === at ? sum(values.map((v) => v.shape[at]!)) : dim));
  return g.op('Concat', [...values], { type: first.type, shape }, { axis });
}

/** Cuts x along `axis` into parts of the given sizes. */
export function split(g: GraphBuilder, x: Value, axis: number, sizes: readonly number[]): Value[] {
  const results = sizes.map((size) => ({
    type: x.type,
    shape: x.shape.map((dim, i) => (i === axis ? size : dim)),
  }));
  return g.ops('Split', [x, g.ints(...sizes)], results, { axis });
}

/** Rows `begin` (inclusive) to `end` (exclusive) of x along axis 0; both int64 [1]. */
export function rows(g: GraphBuilder, x: Value, begin: Value, end: Value, count: Dim): Value {
  const shape = [count, ...x.shape.slice(1)];
  return g.op('Slice', [x, begin, end, g.ints(0)], { type: x.type, shape });
}

/** Cuts x along axis 0 into parts that have as many rows as the given values. */
export function splitRows(g: GraphBuilder, x: Value, like: readonly Value[]): Value[] {
  const counts = g.op(
    'Concat',
    like.map((value) => rowCount(g, value)),
    { type: 'int64', shape: [like.length] },
    { axis: 0 },
  );
  const results = like.map((value) => ({ type: x.type, shape: [value.shape[0]!, ...x.shape.slice(1)] }));
  return g.ops('Split', [x, counts], results, { axis: 0 });
}

/** The size of axis 0 as int64 [1]. */
export function rowCount(g: GraphBuilder, x: Value): Value {
  return g.op('Shape', [x], { type: 'int64', shape: [1] }, { start: 0, end: 1 });
}

/** Rows of `table` picked by int64 `indices`; the result has the shape of the indices, then of a row. */
export function gather(g: GraphBuilder, table: Value, indices: Value): Value {
  const shape = [...indices.shape, ...table.shape.slice(1)];
  return g.op('Gather', [table, indices], { type: table.type, shape }, { axis: 0 });
}

/** `x` in another floating-point type; itself when it has it already. */
export function cast(g: GraphBuilder, x: Value, type: ElementType): Value {
  return x.type === type ? x : g.op('Cast', [x], { type, shape: x.shape }, { to: ELEMENT_TYPES[type] });
}

function dims(x: Value, rank: number, where: string): Dim[] {
  if (x.shape.length !== rank)
    throw new Error(`${where}: ${x.name} has shape [${x.shape.join(', ')}], expected ${rank} axes`);
  return [...x.shape];
}

function sum(parts: readonly Dim[]): Dim {
  return parts.every((part) => typeof part === 'number')
    ? parts.reduce((a, b) => a + b, 0)
    : parts.map(String).join('+');
}

function broadcast(a: Value, b: Value): Dim[] {
  const rank = Math.max(a.shape.length, b.shape.length);
  return Array.from({ length: rank }, (_, i) => {
    const x = a.shape[i - rank + a.shape.length] ?? 1;
    const y = b.shape[i - rank + b.shape.length] ?? 1;
    if (x === y || y === 1) return x;
    if (x === 1) return y;
    // Two names may stand for one size; two different numbers cannot.
    if (typeof x === 'number' && typeof y === 'number')
      throw new Error(`cannot broadcast [${a.shape.join(', ')}] with [${b.shape.join(', ')}]`);
    return typeof x === 'number' ? x : y;
  });
}
