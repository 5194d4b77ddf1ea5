import type { GraphBuilder, Value } from './builder.ts';
import { Linears } from './linears.ts';
import { cast, concat, geluTanh, linear, linearOnto } from './ops.ts';
import { cut, type RowRange, type StreamedWeights } from './streamed-weights.ts';
import type { ComputeType } from './weights.ts';

/**
 * Linears whose weights are streamed, in the type of their operand. Where a weight has many values its rows are
 * widened and multiplied in parts, so that a part is all that there is of it in the wide type at any time.
 *
 * A LoRA comes in as fp32, `<module>.down` [rank, in] and `<module>.up` [out, rank], so that its feeds are the same
 * whatever the graph computes in.
 */
export class StreamedLinears extends Linears {
  readonly #graph: GraphBuilder;
  readonly #weights: StreamedWeights;
  readonly #adapted: ReadonlySet<string>;

  constructor(graph: GraphBuilder, weights: StreamedWeights, adapted: ReadonlySet<string>) {
    super(graph, weights);
    this.#graph = graph;
    this.#weights = weights;
    this.#adapted = adapted;
  }

  override apply(x: Value, path: string): Value {
    return this.#apply(x, path, (y) => y);
  }

  /** GELU is done part by part: of a wide result there are never two copies besides the parts. */
  override applyGelu(x: Value, path: string): Value {
    return this.#apply(x, path, (y) => geluTanh(this.#graph, y));
  }

  #apply(x: Value, path: string, then: (y: Value) => Value): Value {
    const type = x.type as ComputeType;
    const [weight, bias] = [`${path}.weight`, `${path}.bias`];
    const change = this.#adapted.has(path) ? this.#change(x, path) : null;
    const parts = this.#weights.ranges(weight, type).map((range) => {
      const added = this.#weights.has(bias) ? this.#weights.get(bias, type, range) : null;
      const y = linear(this.#graph, x, this.#weights.get(weight, type, range), added);
      return then(change ? change(y, range) : y);
    });
    return parts.length === 1 ? parts[0]! : concat(this.#graph, parts, 1);
  }

  /** Adds what the LoRA of a module makes of x to those columns of its result that belong to a range of its rows. */
  #change(x: Value, path: string): (y: Value, range: RowRange | null) => Value {
    const g = this.#graph;
    const compute = x.type as ComputeType;
    const rank = `rank:${path}`;
    const down = g.input(`${path}.down`, 'float32', [rank, x.shape[1]!]);
    const up = cast(
      g,
      g.input(`${path}.up`, 'float32', [this.#weights.rowCount(`${path}.weight`), rank]),
      compute,
    );
    const reduced = linear(g, x, cast(g, down, compute), null);
    return (y, range) => linearOnto(g, reduced, range ? cut(g, up, range) : up, y);
  }
}
