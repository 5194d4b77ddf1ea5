import { backward } from '../autodiff/backward.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { layerNorm, mul, split, splitRows } from '../graph/ops.ts';
import type { WeightLocator, Weights } from '../graph/weights.ts';
import { type BlockContext, doubleBlock, singleBlock } from '../transformer/blocks.ts';
import { type Chunk, FINAL_CHUNKS, type Modulation } from '../transformer/modulation.ts';

/*
 * One graph per kind of block and direction, with the block's weights as inputs: memory then holds one block at a
 * time, and the same session serves all blocks of its kind. Names in the graphs are those of block 0. The backward
 * graphs compute the block anew from its input (gradient checkpointing, one block at a time).
 */

/** Prefixes of input names; what follows is the canonical name in block 0. */
export const WEIGHT = 'weight:';
export const MODULATION = 'modulation:';
/** Suffix of an output that is the gradient of the input of the same name. */
export const GRADIENT = '.gradient';

export type Direction = 'forward' | 'backward';

/** img [S, hidden], txt [T, hidden] -> the same after the block; backward also takes their gradients. */
export function buildDoubleBlock(
  spec: TransformerSpec,
  weights: WeightLocator,
  adapted: ReadonlySet<string>,
  direction: Direction,
): GraphModel {
  const g = new GraphBuilder(`double-${direction}`);
  const img = g.input('img', 'float32', ['S', spec.hiddenSize]);
  const txt = g.input('txt', 'float32', ['T', spec.hiddenSize]);
  const out = doubleBlock(context(g, spec, weights, adapted), 0, img, txt);
  return finish(g, direction, { img, txt }, out);
}

/** joint [T + S, hidden] -> the same after the block. */
export function buildSingleBlock(
  spec: TransformerSpec,
  weights: WeightLocator,
  adapted: ReadonlySet<string>,
  direction: Direction,
): GraphModel {
  const g = new GraphBuilder(`single-${direction}`);
  const joint = g.input('joint', 'float32', ['N', spec.hiddenSize]);
  const out = singleBlock(context(g, spec, weights, adapted), 0, joint);
  return finish(g, direction, { joint }, { joint: out });
}

/** latents [S, inChannels] -> img [S, hidden]. */
export function buildStem(spec: TransformerSpec, weights: WeightLocator): GraphModel {
  const g = new GraphBuilder('stem');
  const latents = g.input('latents', 'float32', ['S', spec.inChannels]);
  g.output('img', new Linears(g, new InputWeights(g, weights)).apply(latents, 'x_embedder'));
  return g.build();
}

/**
 * joint [T + S, hidden], txt [T, hidden] (for its length), target [S, outChannels], scale [] = 2 / target's size
 * -> velocity [S, outChannels] and the gradient of the mean squared error with respect to joint.
 */
export function buildHead(spec: TransformerSpec, weights: WeightLocator): GraphModel {
  const g = new GraphBuilder('head');
  const joint = g.input('joint', 'float32', ['N', spec.hiddenSize]);
  const txt = g.input('txt', 'float32', ['T', spec.hiddenSize]);
  const target = g.input('target', 'float32', ['S', spec.outChannels]);
  const scale = g.input('scale', 'float32', []);
  const linears = new Linears(g, new InputWeights(g, weights));
  const [, img] = splitRows(g, joint, [txt, target]) as [Value, Value];
  const [shift, gain] = new InputModulation(g, spec.hiddenSize).chunks('norm_out', FINAL_CHUNKS) as [
    Value,
    Value,
  ];
  const velocity = linears.apply(layerNorm(g, img, gain, shift, 1e-6), 'proj_out');
  g.output('velocity', velocity);
  const error = g.op('Sub', [velocity, target], velocity);
  const [gradient] = backward(g, new Map([[velocity, mul(g, error, scale)]]), [joint]) as [Value];
  g.output(`joint${GRADIENT}`, gradient);
  return g.build();
}

function context(
  g: GraphBuilder,
  spec: TransformerSpec,
  weights: WeightLocator,
  adapted: ReadonlySet<string>,
): BlockContext {
  return {
    g,
    spec,
    linears: new Linears(g, new InputWeights(g, weights), adapted),
    modulation: new InputModulation(g, spec.hiddenSize),
    cos: g.input('cos', 'float32', ['N', spec.headDim / 2]),
    sin: g.input('sin', 'float32', ['N', spec.headDim / 2]),
  };
}

function finish<Name extends string>(
  g: GraphBuilder,
  direction: Direction,
  inputs: Record<Name, Value>,
  outputs: Record<Name, Value>,
): GraphModel {
  const names = Object.keys(inputs) as Name[];
  if (direction === 'forward') {
    for (const name of names) g.output(`${name}.out`, outputs[name]);
    return g.build();
  }
  const deltas = g.inputs.filter(({ name }) => name.endsWith('.down') || name.endsWith('.up'));
  const seeds = new Map(
    names.map((name) => [outputs[name], g.input(`${name}.out${GRADIENT}`, 'float32', outputs[name].shape)]),
  );
  const wanted = [...names.map((name) => inputs[name]), ...deltas];
  const gradients = backward(g, seeds, wanted);
  wanted.forEach(({ name }, i) => g.output(`${name}${GRADIENT}`, gradients[i]!));
  return g.build();
}

class InputWeights implements Weights {
  readonly #graph: GraphBuilder;
  readonly #locator: WeightLocator;
  readonly #inputs = new Map<string, Value>();

  constructor(graph: GraphBuilder, locator: WeightLocator) {
    this.#graph = graph;
    this.#locator = locator;
  }

  has(name: string): boolean {
    return this.#locator.has(name);
  }

  get(name: string): Value {
    const known = this.#inputs.get(name);
    if (known) return known;
    const value = this.#graph.input(`${WEIGHT}${name}`, 'float32', this.#locator.locate(name).shape);
    this.#inputs.set(name, value);
    return value;
  }
}

class InputModulation implements Modulation {
  readonly #graph: GraphBuilder;
  readonly #hidden: number;

  constructor(graph: GraphBuilder, hidden: number) {
    this.#graph = graph;
    this.#hidden = hidden;
  }

  chunks(name: string, chunks: readonly Chunk[]): Value[] {
    const row = this.#graph.input(`${MODULATION}${name}`, 'float32', [chunks.length * this.#hidden]);
    return split(
      this.#graph,
      row,
      0,
      chunks.map(() => this.#hidden),
    );
  }
}
