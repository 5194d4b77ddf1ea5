import { type Dim, GraphBuilder, type GraphModel, type Value } from './builder.ts';
import { StreamedLinears } from './streamed-linears.ts';
import { StreamedWeights } from './streamed-weights.ts';
import type { ComputeType, WeightLocator } from './weights.ts';

/** One kind of what a model is a chain of, such as a layer. All units of a kind differ in their weights alone. */
export interface UnitKind {
  /** Of the weights that `build` asks for without a type. */
  readonly compute: ComputeType;
  /** Adds the inputs and nodes of a unit, under the names that the first unit's weights have. @returns the results */
  build(g: GraphBuilder, linears: StreamedLinears, weights: StreamedWeights): Record<string, Value>;
}

/** A kind together with what else decides about nodes: the formats of the weights, and which modules take a LoRA. */
export interface UnitVariant {
  readonly kind: UnitKind;
  readonly locator: WeightLocator;
  readonly adapted: ReadonlySet<string>;
}

/** Names of the weights that a unit uses. */
export function unitWeights(kind: UnitKind, locator: WeightLocator): string[] {
  return [...new Set(requests({ kind, locator, adapted: new Set() }).map(({ name }) => name))];
}

/**
 * Adds the nodes of a unit. It is built twice: the first attempt tells which weights it uses, the second starts with
 * widening them. ONNX Runtime goes from the results backwards and, of a node's operands, first to the one whose node
 * was added last; a weight that is widened behind its operand's node is widened before everything that the operand
 * needs: all weights of a unit would be in memory at once (0.7 GB more for a layer of T5-XXL in fp32).
 */
export function buildUnit(g: GraphBuilder, variant: UnitVariant): Record<string, Value> {
  const { kind, locator, adapted } = variant;
  const weights = new StreamedWeights(g, locator, kind.compute);
  for (const { name, type, range } of requests(variant)) weights.get(name, type, range);
  return kind.build(g, new StreamedLinears(g, weights, adapted), weights);
}

function requests({ kind, locator, adapted }: UnitVariant): StreamedWeights['requests'] {
  const trial = new GraphBuilder('trial');
  const weights = new StreamedWeights(trial, locator, kind.compute);
  kind.build(trial, new StreamedLinears(trial, weights, adapted), weights);
  return weights.requests;
}

/** Before the names of all inputs and outputs of a variant. */
export function variantPrefix(index: number): string {
  return `${index}/`;
}

/** Bool input of a variant, behind its prefix: whether the run is one of it. */
export const TAKEN = 'taken';

/**
 * All variants of a chain in one graph, each a branch that is taken in its own runs. One graph has one session, and
 * that one arena of a device's memory, which is as large as the largest variant needs; sessions of their own would
 * each keep what they once had. The others' inputs are fed without rows.
 */
export function buildUnits(name: string, variants: readonly UnitVariant[]): GraphModel {
  const g = new GraphBuilder(name);
  for (const [index, variant] of variants.entries()) {
    const prefix = variantPrefix(index);
    const taken = g.input(`${prefix}${TAKEN}`, 'bool', []);
    const unit = g.body(`${prefix}unit`, (input, type, shape) => {
      const value = { name: `${prefix}${input}`, type, shape };
      g.input(value.name, type, unbounded(value));
      return value;
    });
    const skipped = g.body(`${prefix}skipped`);
    const outputs = Object.entries(buildUnit(unit, variant));
    for (const [output, value] of outputs) {
      unit.output(`${prefix}${output}.unit`, value);
      skipped.output(`${prefix}${output}.skipped`, nothing(g, value));
    }
    const shapes = outputs.map(([, { type, shape }]) => ({
      type,
      shape: shape.map((dim) => `${prefix}${dim}`),
    }));
    const results = g.ops('If', [taken], shapes, {
      then_branch: { graph: unit },
      else_branch: { graph: skipped },
    });
    outputs.forEach(([output], i) => g.output(`${prefix}${output}`, results[i]!));
  }
  return g.build();
}

/** The shape with room for no rows, where it has axes. */
function unbounded({ name, shape }: Value): Dim[] {
  return shape.map((dim, axis) => (axis === 0 || typeof dim === 'string' ? `${name}:${axis}` : dim));
}

function nothing(g: GraphBuilder, { type, shape }: Value): Value {
  const none = type === 'float16' ? new Float16Array(0) : new Float32Array(0);
  return g.constant(
    none,
    shape.map(() => 0),
  );
}
