import type { GraphBuilder, NodeRecord, Value } from '../graph/builder.ts';
import { add } from '../graph/ops.ts';
import { VJP } from './rules.ts';

/** The vector-Jacobian product of one kind of node. */
export type Rule = (context: RuleContext) => (Value | null)[];

export interface RuleContext {
  g: GraphBuilder;
  node: NodeRecord;
  /** Gradient of each result of the node; null where it is zero. */
  gradients: readonly (Value | null)[];
  /** Whether the gradient of operand i is asked for. */
  needs: (operand: number) => boolean;
}

/**
 * Reverse-mode differentiation over the nodes that a graph has so far: adds the nodes that compute
 * Σ seedᵀ · ∂output/∂wanted and returns one value per wanted one.
 *
 * @param seeds gradients of some scalar with respect to the graph's results
 * @param wanted inputs, weights or inner values
 * @param from the first of the graph's records that may lie between `wanted` and `seeds`
 * @throws Error for an operator without a rule on the way, and for a wanted value that nothing depends on
 */
export function backward(
  g: GraphBuilder,
  seeds: ReadonlyMap<Value, Value>,
  wanted: readonly Value[],
  from = 0,
): Value[] {
  const nodes = g.records.slice(from);
  const dependent = new Set(wanted.map(({ name }) => name));
  for (const node of nodes)
    if (node.inputs.some((input) => input && dependent.has(input.name)))
      for (const { name } of node.outputs) dependent.add(name);

  const gradients = new Map<string, Value>();
  const accumulate = (name: string, gradient: Value): void => {
    const sum = gradients.get(name);
    gradients.set(name, sum ? add(g, sum, gradient) : gradient);
  };
  for (const [value, seed] of seeds) accumulate(value.name, seed);

  for (const node of nodes.toReversed()) {
    const incoming = node.outputs.map(({ name }) => gradients.get(name) ?? null);
    const needs = (operand: number): boolean => dependent.has(node.inputs[operand]?.name ?? '');
    if (incoming.every((gradient) => !gradient) || !node.inputs.some((_, i) => needs(i))) continue;
    const rule = VJP[node.opType];
    if (!rule) throw new Error(`${node.opType} has no derivative`);
    const outgoing = rule({ g, node, gradients: incoming, needs });
    outgoing.forEach((gradient, i) => {
      const input = node.inputs[i];
      if (gradient && input && needs(i)) accumulate(input.name, gradient);
    });
  }
  return wanted.map(({ name }) => {
    const gradient = gradients.get(name);
    if (!gradient) throw new Error(`nothing that was seeded depends on ${name}`);
    return gradient;
  });
}
