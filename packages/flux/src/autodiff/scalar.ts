import type { GraphBuilder, Value } from '../graph/builder.ts';

/** A constant of the type of `like`. */
export function scalar(g: GraphBuilder, like: Value, value: number): Value {
  return g.constant(like.type === 'float16' ? Float16Array.of(value) : Float32Array.of(value), []);
}
