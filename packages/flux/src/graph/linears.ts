import type { GraphBuilder, Value } from './builder.ts';
import { linear } from './ops.ts';
import type { GraphWeights } from './weights.ts';

/**
 * The linear modules of a graph by their canonical paths. Every matrix product with a weight goes through here, so
 * what is to happen to "each linear of the model" has one place.
 */
export class Linears {
  readonly weights: GraphWeights;
  readonly #graph: GraphBuilder;

  constructor(graph: GraphBuilder, weights: GraphWeights) {
    this.#graph = graph;
    this.weights = weights;
  }

  /** x [T, in] through the module at `path`: [T, out]. */
  apply(x: Value, path: string): Value {
    const bias = this.weights.has(`${path}.bias`) ? this.weights.get(`${path}.bias`) : null;
    return linear(this.#graph, x, this.weights.get(`${path}.weight`), bias);
  }
}
