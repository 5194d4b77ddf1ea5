import { ELEMENT_TYPES, type GraphBuilder, type Value } from '../graph/builder.ts';
import { add, gather, mul } from '../graph/ops.ts';
import type { RuleContext } from './backward.ts';
import { scalar } from './scalar.ts';

const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);
const CUBIC = 0.044715;

/** tanh form: y = x (1 + t) / 2, t = tanh(u), u = √(2/π) (x + 0.044715 x³). */
export function geluRule({ g, node, gradients }: RuleContext): (Value | null)[] {
  if (node.attributes['approximate'] !== 'tanh')
    throw new Error('only the tanh form of Gelu has a derivative');
  const x = node.inputs[0]!;
  return [mul(g, gradients[0]!, x.type === 'float16' ? lookUp(g, x) : compute(g, x))];
}

function compute(g: GraphBuilder, x: Value): Value {
  const number = (value: number): Value => scalar(g, x, value);
  const c = number(SQRT_2_OVER_PI);
  const square = mul(g, x, x);
  const inner = mul(g, mul(g, x, c), add(g, mul(g, square, number(CUBIC)), number(1)));
  const t = g.op('Tanh', [inner], x);
  const slope = mul(g, c, add(g, mul(g, square, number(3 * CUBIC)), number(1)));
  const sech = g.op('Sub', [number(1), mul(g, t, t)], x);
  return mul(g, add(g, add(g, t, number(1)), mul(g, x, mul(g, sech, slope))), number(0.5));
}

/** Beyond this the derivative is 0 or 1 to the last bit of fp16. */
const RANGE = 8;
/** Values of the table between two numbers; x times it is exact, a power of two. */
const DENSITY = 2048;

/**
 * The derivative as a function of halves, from a table: four passes over x, where {@link compute} takes some fifteen,
 * which on a GPU are a tenth of a block's time, and whose roundings add up to ten times the error of this.
 * The index is x * DENSITY, rounded towards 0; negative ones count from the end of the table.
 */
function lookUp(g: GraphBuilder, x: Value): Value {
  const number = (value: number): Value => scalar(g, x, value);
  const clipped = g.op('Clip', [x, number(-RANGE), number(RANGE)], x);
  const scaled = mul(g, clipped, number(DENSITY));
  const index = g.op('Cast', [scaled], { type: 'int32', shape: x.shape }, { to: ELEMENT_TYPES.int32 });
  return gather(g, table(g), index);
}

function table(g: GraphBuilder): Value {
  const last = RANGE * DENSITY;
  const values = new Float16Array(2 * last + 1);
  // In the middle of what is rounded to the same index.
  for (let i = -last; i <= last; i++)
    values.set([derivative((i + Math.sign(i) / 2) / DENSITY)], i < 0 ? values.length + i : i);
  return g.constant(values, [values.length]);
}

function derivative(x: number): number {
  const t = Math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x ** 3));
  return (1 + t + x * (1 - t * t) * SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x)) / 2;
}
