import type { GraphBuilder, Value } from '../graph/builder.ts';
import { add, cast, mul, split, transpose } from '../graph/ops.ts';
import { attentionRule } from './attention.ts';
import type { Rule, RuleContext } from './backward.ts';
import { geluRule } from './gelu.ts';
import { scalar } from './scalar.ts';

/** Gradients by operator, for every operator that lies between a loss and a LoRA. */
export const VJP: Readonly<Record<string, Rule>> = Object.freeze({
  Gemm: gemm,
  LayerNormalization: layerNormalization,
  SimplifiedLayerNormalization: rmsNormalization,
  MultiHeadAttention: attentionRule,
  RotaryEmbedding: rotaryEmbedding,
  Gelu: geluRule,
  QuickGelu: quickGelu,
  Add: ({ g, node, gradients }) => node.inputs.map((input) => reduceTo(g, gradients[0]!, input!)),
  Sub: ({ g, node, gradients }) => [
    reduceTo(g, gradients[0]!, node.inputs[0]!),
    reduceTo(g, negate(g, gradients[0]!), node.inputs[1]!),
  ],
  Mul: ({ g, node, gradients, needs }) =>
    [0, 1].map((i) =>
      needs(i) ? reduceTo(g, mul(g, gradients[0]!, node.inputs[1 - i]!), node.inputs[i]!) : null,
    ),
  Reshape: ({ g, node, gradients }) => [reshapeLike(g, gradients[0]!, node.inputs[0]!)],
  Transpose: ({ g, node, gradients }) => {
    const perm = node.attributes['perm'] as readonly number[];
    return [
      transpose(
        g,
        gradients[0]!,
        perm.map((_, i) => perm.indexOf(i)),
      ),
    ];
  },
  Identity: ({ gradients }) => [gradients[0]!],
  // Only ever the bounds of fp16, which a value that can be trained on does not reach.
  Clip: ({ gradients }) => [gradients[0]!, null, null],
  Concat: concatenation,
  Split: splitting,
});

/** y = x Wᵀ (transB) or x W, plus c of the same shape or one row. */
function gemm({ g, node, gradients, needs }: RuleContext): (Value | null)[] {
  const [x, w, c] = node.inputs as [Value, Value, Value | undefined];
  const dy = gradients[0]!;
  const transposed = node.attributes['transB'] === 1;
  const rank2 = (a: Value, b: Value, shape: Value['shape'], attributes: Record<string, number>): Value =>
    g.op('Gemm', [a, b], { type: dy.type, shape }, attributes);
  return [
    needs(0) ? rank2(dy, w, x.shape, transposed ? {} : { transB: 1 }) : null,
    needs(1)
      ? transposed
        ? rank2(dy, x, w.shape, { transA: 1 })
        : rank2(x, dy, w.shape, { transA: 1 })
      : null,
    c && needs(2) ? reduceTo(g, dy, c) : null,
  ];
}

/** y = x̂ s + b with x̂ = (x - mean) r: dx = r (d - mean(d) - x̂ mean(d x̂)), d = dy s. */
function layerNormalization({ g, node, gradients, needs }: RuleContext): (Value | null)[] {
  const [x, scale, bias] = node.inputs as [Value, Value, Value];
  const dy = gradients[0]!;
  const width = scale.shape[0] as number;
  const ones = filled(g, x, width, 1);
  const zeros = filled(g, x, width, 0);
  // Statistics are fp32 whatever the type of x.
  const perRow = { type: 'float32' as const, shape: [x.shape[0]!, 1] };
  const [normed, , inverse] = g.ops(
    'LayerNormalization',
    [x, ones, zeros],
    [x, perRow, perRow],
    node.attributes,
  ) as [Value, Value, Value];
  const d = mul(g, dy, scale);
  const centred = sub(g, sub(g, d, rowMean(g, d)), mul(g, normed, rowMean(g, mul(g, d, normed))));
  return [
    needs(0) ? mul(g, centred, cast(g, inverse, x.type)) : null,
    needs(1) ? reduceTo(g, mul(g, dy, normed), scale) : null,
    needs(2) ? reduceTo(g, dy, bias) : null,
  ];
}

/** y = x̂ s with x̂ = x r, r = 1 / rms(x): dx = r (d - x̂ mean(d x̂)), d = dy s. */
function rmsNormalization({ g, node, gradients, needs }: RuleContext): (Value | null)[] {
  const [x, scale] = node.inputs as [Value, Value];
  const width = scale.shape[0] as number;
  const ones = filled(g, x, width, 1);
  const perRow = { type: 'float32' as const, shape: [...x.shape.slice(0, -1), 1] };
  const [normed, inverse] = g.ops(
    'SimplifiedLayerNormalization',
    [x, ones],
    [x, perRow],
    node.attributes,
  ) as [Value, Value];
  const d = mul(g, gradients[0]!, scale);
  return [
    needs(0)
      ? mul(g, sub(g, d, mul(g, normed, rowMean(g, mul(g, d, normed)))), cast(g, inverse, x.type))
      : null,
    needs(1) ? reduceTo(g, mul(g, gradients[0]!, normed), scale) : null,
  ];
}

/** A rotation's transpose is the rotation by the negative angle. */
function rotaryEmbedding({ g, node, gradients }: RuleContext): (Value | null)[] {
  const [, start, cos, sin] = node.inputs as [Value, Value, Value, Value];
  const dy = gradients[0]!;
  return [
    g.op('RotaryEmbedding', [dy, start, cos, negate(g, sin)], dy, { interleaved: 1 }, 'com.microsoft'),
    null,
    null,
    null,
  ];
}

/** y = x s, s = sigmoid(α x): dy/dx = s + α x s (1 - s). */
function quickGelu({ g, node, gradients }: RuleContext): (Value | null)[] {
  const x = node.inputs[0]!;
  const alpha = scalar(g, x, (node.attributes['alpha'] as { float: number }).float);
  const s = g.op('Sigmoid', [mul(g, x, alpha)], x);
  const rest = mul(g, mul(g, mul(g, x, alpha), s), sub(g, scalar(g, x, 1), s));
  return [mul(g, gradients[0]!, add(g, s, rest))];
}

function concatenation({ g, node, gradients }: RuleContext): (Value | null)[] {
  const axis = node.attributes['axis'] as number;
  const inputs = node.inputs as Value[];
  const at = axis < 0 ? axis + inputs[0]!.shape.length : axis;
  const known = inputs.map(({ shape }) => shape[at]!);
  if (known.every((size) => typeof size === 'number')) return split(g, gradients[0]!, at, known);
  const size = (value: Value): Value => {
    return g.op('Shape', [value], { type: 'int64', shape: [1] }, { start: at, end: at + 1 });
  };
  const sizes = g.op('Concat', inputs.map(size), { type: 'int64', shape: [inputs.length] }, { axis: 0 });
  return g.ops('Split', [gradients[0]!, sizes], inputs, { axis });
}

function splitting({ g, node, gradients }: RuleContext): (Value | null)[] {
  const x = node.inputs[0]!;
  const parts = node.outputs.map((output, i) => gradients[i] ?? zerosLike(g, output));
  return [g.op('Concat', parts, x, { axis: node.attributes['axis']! })];
}

/** Sums a gradient over the axes along which its operand was repeated. */
function reduceTo(g: GraphBuilder, gradient: Value, operand: Value): Value {
  const missing = gradient.shape.length - operand.shape.length;
  const axes = gradient.shape.flatMap((dim, axis) => {
    const own = axis < missing ? undefined : operand.shape[axis - missing];
    return own === undefined || (own === 1 && dim !== 1) ? [axis] : [];
  });
  if (axes.length === 0) return gradient;
  const kept = gradient.shape.map((dim, axis) => (axes.includes(axis) ? 1 : dim));
  const summed = g.op(
    'ReduceSum',
    [gradient, g.ints(...axes)],
    { type: gradient.type, shape: kept },
    { keepdims: 1 },
  );
  return missing === 0 ? summed : reshapeLike(g, summed, operand);
}

function reshapeLike(g: GraphBuilder, x: Value, like: Value): Value {
  const shape = g.op('Shape', [like], { type: 'int64', shape: [like.shape.length] });
  return g.op('Reshape', [x, shape], { type: x.type, shape: like.shape });
}

function zerosLike(g: GraphBuilder, x: Value): Value {
  const shape = g.op('Shape', [x], { type: 'int64', shape: [x.shape.length] });
  return g.op('Expand', [scalar(g, x, 0), shape], x);
}

function rowMean(g: GraphBuilder, x: Value): Value {
  const shape = [...x.shape.slice(0, -1), 1];
  return g.op('ReduceMean', [x, g.ints(-1)], { type: x.type, shape }, { keepdims: 1 });
}

function sub(g: GraphBuilder, a: Value, b: Value): Value {
  return g.op('Sub', [a, b], a.shape.length >= b.shape.length ? a : b);
}

function negate(g: GraphBuilder, x: Value): Value {
  return g.op('Neg', [x], x);
}

function filled(g: GraphBuilder, like: Value, size: number, value: number): Value {
  const values = new Float32Array(size).fill(value);
  return g.constant(like.type === 'float16' ? new Float16Array(values) : values, [size]);
}
