import type { GraphBuilder, Value } from './builder.ts';
import { Linears } from './linears.ts';
import { linear, linearOnto } from './ops.ts';
import { cast } from './streamed-weights.ts';
import type { ComputeType, Weights } from './weights.ts';

/**
 * Linears of a graph in any compute type. A LoRA comes in as fp32, `<module>.down` [rank, in] and `<module>.up`
 * [out, rank], so that its feeds are the same whatever the graph computes in.
 */
export class StreamedLinears extends Linears {
  readonly #graph: GraphBuilder;
  readonly #adapted: ReadonlySet<string>;

  constructor(graph: GraphBuilder, weights: Weights, adapted: ReadonlySet<string>) {
    super(graph, weights);
    this.#graph = graph;
    this.#adapted = adapted;
  }

  override apply(x: Value, path: string): Value {
    const y = super.apply(x, path);
    if (!this.#adapted.has(path)) return y;
    const g = this.#graph;
    const compute = x.type as ComputeType;
    const rank = `rank:${path}`;
    const down = g.input(`${path}.down`, 'float32', [rank, x.shape[1]!]);
    const up = g.input(`${path}.up`, 'float32', [y.shape[1]!, rank]);
    return linearOnto(g, linear(g, x, cast(g, down, compute), null), cast(g, up, compute), y);
  }
}
