import type { Dim, ElementType, GraphBuilder, NodeRecord, Value } from './builder.ts';

/** Bytes of an element. */
const BYTES: Readonly<Record<ElementType, number>> = Object.freeze({
  float32: 4,
  float16: 2,
  bfloat16: 2,
  float8e4m3fn: 1,
  int64: 8,
  int32: 4,
  uint8: 1,
  uint16: 2,
  bool: 1,
});

/** Their result is their operand's memory. */
const VIEWS = new Set(['Reshape', 'Squeeze', 'Unsqueeze']);

/**
 * The nodes of a graph in the order in which ONNX Runtime executes them, those of bodies aside, which have an order of
 * their own: depth first from the results backwards, the last result first, and of what a node or its bodies take the
 * value whose node was added last before all others. Source: `Graph::ReverseDFSFrom` with `NodeCompare`, as
 * `GraphViewer` calls it (execution order DEFAULT).
 */
export function executionOrder(g: GraphBuilder): NodeRecord[] {
  const nodes = g.plan;
  const producers = new Map(nodes.flatMap(({ outputs }, i) => outputs.map(({ name }) => [name, i] as const)));
  const takes = new Map(nodes.map((node) => [node, operands(node)]));
  const consumed = new Set([...takes.values()].flatMap((names) => [...names]));
  const isLeaf = ({ outputs }: NodeRecord): boolean => outputs.every(({ name }) => !consumed.has(name));
  const stack = nodes.flatMap((node, i) => (isLeaf(node) ? [{ i, leave: false }] : []));
  const visited = new Set<number>();
  const order: NodeRecord[] = [];
  for (let entry = stack.pop(); entry; entry = stack.pop()) {
    const node = nodes[entry.i]!;
    if (entry.leave) order.push(node);
    if (entry.leave || visited.has(entry.i)) continue;
    visited.add(entry.i);
    stack.push({ i: entry.i, leave: true });
    const before = new Set([...takes.get(node)!].flatMap((name) => producers.get(name) ?? []));
    for (const i of [...before].sort((a, b) => a - b)) if (!visited.has(i)) stack.push({ i, leave: false });
  }
  return order;
}

/**
 * The most bytes that results of nodes take at once when a graph runs at the given sizes. Weights are not among them,
 * and every node is taken to need memory for its results while its operands are there; ONNX Runtime lets some
 * operators write over an operand. A node with bodies takes what the largest of them does, whose results are its own.
 * @param sizes of the named dimensions
 * @returns and after which node that is, for finding out why
 * @throws Error for a dimension without a size
 */
export function peakLiveBytes(
  g: GraphBuilder,
  sizes: Readonly<Record<string, number>>,
): { bytes: number; at: NodeRecord; position: number } {
  const order = executionOrder(g);
  const roots = new Map<string, string>();
  const root = (name: string): string => roots.get(name) ?? name;
  const uses = new Map<string, number>();
  for (const node of order) {
    const { opType, inputs, outputs } = node;
    if (VIEWS.has(opType)) roots.set(outputs[0]!.name, root(inputs[0]!.name));
    for (const name of operands(node)) uses.set(root(name), (uses.get(root(name)) ?? 0) + 1);
  }
  const live = new Map<string, number>();
  let bytes = 0;
  let peak = { bytes: 0, at: order[0]!, position: 0 };
  const free = (name: string): void => {
    bytes -= live.get(name) ?? 0;
    live.delete(name);
  };
  for (const [position, node] of order.entries()) {
    for (const body of bodies(node)) {
      const inner = peakLiveBytes(body, sizes);
      if (bytes + inner.bytes > peak.bytes) peak = { bytes: bytes + inner.bytes, at: inner.at, position };
    }
    for (const output of node.outputs) {
      if (roots.has(output.name)) continue;
      const size = byteLength(output, sizes);
      live.set(output.name, size);
      bytes += size;
    }
    if (bytes > peak.bytes) peak = { bytes, at: node, position };
    for (const name of operands(node)) {
      const left = uses.get(root(name))! - 1;
      uses.set(root(name), left);
      if (left === 0) free(root(name));
    }
    // Results of the graph stay; what nobody takes goes at once.
    if (node.opType !== 'Identity')
      for (const { name } of node.outputs) if (!roots.has(name) && !uses.has(name)) free(name);
  }
  return peak;
}

/** What a node takes, and what its bodies do of the graph around them: that has to be there before the node runs. */
function operands(node: NodeRecord): Set<string> {
  const own = node.inputs.flatMap((input) => (input ? [input.name] : []));
  const inner = bodies(node).flatMap((body) => body.plan.flatMap((each) => [...operands(each)]));
  return new Set([...own, ...inner]);
}

/** The graphs inside of a node: the branches of an If. */
export function bodies({ attributes }: NodeRecord): GraphBuilder[] {
  return Object.values(attributes).flatMap((value) =>
    typeof value === 'object' && 'graph' in value ? [value.graph] : [],
  );
}

function byteLength({ type, shape }: Value, sizes: Readonly<Record<string, number>>): number {
  return shape.reduce<number>((product, dim) => product * sizeOf(dim, sizes), BYTES[type]);
}

/** @example sizeOf('T+S', { T: 512, S: 4096 }) */
function sizeOf(dim: Dim, sizes: Readonly<Record<string, number>>): number {
  if (typeof dim === 'number') return dim;
  const known = sizes[dim];
  if (known !== undefined) return known;
  const parts = dim.split('+');
  if (parts.length === 1) throw new Error(`no size is given for the dimension ${dim}`);
  return parts.reduce((sum, part) => sum + sizeOf(part, sizes), 0);
}
