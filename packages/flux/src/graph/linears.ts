import type { Deltas } from '../lora/compose.ts';
import type { Feed } from '../runtime/session.ts';
import type { GraphBuilder, Value } from './builder.ts';
import { geluTanh, linear, linearOnto } from './ops.ts';
import type { Weights } from './weights.ts';

/**
 * The linear modules of a graph by their canonical paths. Every matrix product with a weight goes through here, so
 * what is to happen to "each linear of the model" has one place.
 */
export class Linears {
  readonly weights: Weights;
  readonly #graph: GraphBuilder;
  readonly #adapted: ReadonlySet<string>;

  /** @param adapted modules that take a LoRA as further inputs of the graph; see {@link deltaFeeds} */
  constructor(graph: GraphBuilder, weights: Weights, adapted: ReadonlySet<string> = new Set()) {
    this.#graph = graph;
    this.weights = weights;
    this.#adapted = adapted;
  }

  /** x [T, in] through the module at `path`: [T, out]. */
  apply(x: Value, path: string): Value {
    const g = this.#graph;
    const weight = this.weights.get(`${path}.weight`);
    const bias = this.weights.has(`${path}.bias`) ? this.weights.get(`${path}.bias`) : null;
    const y = linear(g, x, weight, bias);
    if (!this.#adapted.has(path)) return y;
    const rank = `rank:${path}`;
    const [outFeatures, inFeatures] = weight.shape as [number, number];
    const down = g.input(`${path}.down`, 'float32', [rank, inFeatures]);
    const up = g.input(`${path}.up`, 'float32', [outFeatures, rank]);
    // Onto the result in full precision: a change that small would be lost in an fp8 weight.
    return linearOnto(g, linear(g, x, down, null), up, y);
  }

  /** {@link apply}, then GELU in its tanh form. */
  applyGelu(x: Value, path: string): Value {
    return geluTanh(this.#graph, this.apply(x, path));
  }

  /** The same x [T, in] through several modules, and GELU after one of them. */
  applyAll(x: Value, paths: readonly string[], gelu?: string): Value[] {
    return paths.map((path) => (path === gelu ? this.applyGelu(x, path) : this.apply(x, path)));
  }
}

/** The inputs of a graph with LoRAs: both matrices of every module in `modules`. */
export function deltaFeeds(deltas: Deltas, modules: Iterable<string>): Record<string, Feed> {
  const feeds: Record<string, Feed> = {};
  for (const module of modules) {
    const { down, up, rank, inFeatures, outFeatures } = deltas.get(module)!;
    feeds[`${module}.down`] = { data: down, dims: [rank, inFeatures] };
    feeds[`${module}.up`] = { data: up, dims: [outFeatures, rank] };
  }
  return feeds;
}
