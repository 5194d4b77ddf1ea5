import { backward } from '../autodiff/backward.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { ELEMENT_TYPES, GraphBuilder, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { add, concat, layerNorm, linear, linearOnto, mul, reshape, splitRows } from '../graph/ops.ts';
import { cast } from '../graph/streamed-weights.ts';
import { type ComputeType, GraphWeights, type WeightLocator, type Weights } from '../graph/weights.ts';
import { type BlockContext, doubleBlock, singleBlock } from '../transformer/blocks.ts';
import { FINAL_CHUNKS, modulationLayout, RowModulation } from '../transformer/modulation.ts';
import type { LoraParameter } from './gradients.ts';

/** Name of the output with the gradients of a block: what follows is the prefix of its modules. */
export const GRADIENTS = 'gradients:';

export type TrainedShape = Pick<LoraParameter, 'module' | 'rank' | 'scale' | 'inFeatures' | 'outFeatures'>;

/** A block: what goes in and comes out are [img, txt] or [joint]. */
interface Stage {
  /** Prefix of its modules. */
  path: string;
  run: (state: readonly Value[]) => Value[];
}

/**
 * Forward and backward pass of the whole token path for one picture, its weights in memory once:
 *
 *   latents [S, inChannels], target [S, outChannels], text [T, jointDim], modulation [M], cos and sin
 *   [T + S, headDim / 2], slope [] = d(what is differentiated) / d(loss), <module>.down and .up
 *     -> loss [], the mean squared error of the velocity, and gradients:<block> of what is trained in a block, end to
 *        end in the order of {@link trainedIn}
 *
 * All of them fp32. The forward pass keeps the input of every block; the backward pass computes each block anew from
 * it. Nothing but the dependencies of the nodes tells ONNX Runtime when to compute what, so the input of a block
 * that is computed anew is made to depend on all gradients of the block behind it (see {@link after}): otherwise
 * blocks would be computed long before their gradients, or gradients long after, and memory grow with every block.
 * The gradient of `up` is that of scale · up.
 */
export function buildTrainingGraph(
  spec: TransformerSpec,
  locator: WeightLocator,
  modules: readonly TrainedShape[],
  compute: ComputeType,
): GraphBuilder {
  const g = new GraphBuilder('training');
  const narrow = (x: Value): Value => cast(g, x, compute);
  const latents = g.input('latents', 'float32', ['S', spec.inChannels]);
  const target = g.input('target', 'float32', ['S', spec.outChannels]);
  const text = g.input('text', 'float32', ['T', spec.jointDim]);
  const row = g.input('modulation', 'float32', [modulationLayout(spec).size]);
  const [cos, sin] = ['cos', 'sin'].map((name) =>
    narrow(g.input(name, 'float32', ['T+S', spec.headDim / 2])),
  ) as [Value, Value];
  const slope = g.input('slope', 'float32', []);
  const weights = new GraphWeights(g, locator, compute);
  const linears = new TrainedLinears(g, weights, modules, compute);
  const modulation = new RowModulation(g, narrow(row), spec);
  const ctx: BlockContext = { g, linears, spec, modulation, cos, sin };

  const stages = blocks(ctx);
  const kept: Value[][] = [
    [linears.apply(narrow(latents), 'x_embedder'), linears.apply(narrow(text), 'context_embedder')],
  ];
  for (const { run } of stages) kept.push(run(kept.at(-1)!));

  const last = kept.pop()!;
  const head = g.records.length;
  const predicted = predict(ctx, last, text, latents);
  const velocity = cast(g, predicted, 'float32');
  const error = g.op('Sub', [velocity, target], velocity);
  const squares = mul(g, error, error);
  const loss = g.op('ReduceMean', [squares], { type: 'float32', shape: [] }, { keepdims: 0 });
  const two = g.constant(Float32Array.of(2), []);
  const count = cast(g, g.op('Size', [target], { type: 'int64', shape: [] }), 'float32');
  const factor = g.op('Div', [mul(g, slope, two), count], slope);
  let slopes = backward(g, new Map([[predicted, narrow(mul(g, error, factor))]]), last, head);

  const gradients: [name: string, value: Value][] = [];
  let done = slopes;
  for (const [i, { path, run }] of [...stages.entries()].toReversed()) {
    const from = g.records.length;
    const inputs = after(g, kept[i]!, done);
    const outputs = run(inputs);
    const trained = linears.trained(path);
    const seeds = new Map(outputs.map((output, j): [Value, Value] => [output, slopes[j]!]));
    // Nothing before the first block is trained.
    const through = i === 0 ? [] : inputs;
    const found = backward(g, seeds, [...through, ...trained], from);
    slopes = found.splice(0, through.length);
    const flat = concat(
      g,
      found.map((gradient) => reshape(g, gradient, [-1], [elements(gradient)])),
      0,
    );
    gradients.push([`${GRADIENTS}${path}`, cast(g, flat, 'float32')]);
    done = [...slopes, flat];
  }
  // Results are computed from the last to the first.
  for (const [name, value] of gradients.toReversed()) g.output(name, value);
  g.output('loss', loss);
  return g;
}

/** The trained modules of a block, in the order in which a forward pass uses them. */
export function trainedIn<Module extends TrainedShape>(modules: readonly Module[], path: string): Module[] {
  return modules.filter(({ module }) => module.startsWith(path));
}

function blocks(ctx: BlockContext): Stage[] {
  const { doubleBlocks, singleBlocks } = ctx.spec;
  const double = (i: number): Stage => ({
    path: `transformer_blocks.${i}.`,
    run: ([img, txt]) => {
      const out = doubleBlock(ctx, i, img!, txt!);
      return [out.img, out.txt];
    },
  });
  const single = (i: number): Stage => ({
    path: `single_transformer_blocks.${i}.`,
    run: (state) => [singleBlock(ctx, i, joint(ctx.g, state))],
  });
  const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
  return [...range(doubleBlocks).map(double), ...range(singleBlocks).map(single)];
}

/** Text before image; [joint] itself. */
function joint(g: GraphBuilder, state: readonly Value[]): Value {
  const [first, txt] = state as [Value, Value?];
  return txt ? concat(g, [txt, first], 0) : first;
}

function predict(ctx: BlockContext, state: readonly Value[], text: Value, latents: Value): Value {
  const { g, linears, modulation } = ctx;
  const [, img] = splitRows(g, joint(g, state), [text, latents]) as [Value, Value];
  const [shift, scale] = modulation.chunks('norm_out', FINAL_CHUNKS) as [Value, Value];
  return linears.apply(layerNorm(g, img, scale, shift, 1e-6), 'proj_out');
}

/**
 * `values`, which nothing that depends on them gets before `done` are there; of these the last is computed first. A
 * selection that never selects an element of `done`: its value cannot matter, not even when it is infinite.
 */
function after(g: GraphBuilder, values: readonly Value[], done: readonly Value[]): Value[] {
  const element = done
    .map((value) => {
      const each = (number: number): Value => g.ints(...value.shape.map(() => number));
      const first = { type: value.type, shape: value.shape.map(() => 1) };
      return reshape(g, g.op('Slice', [value, each(0), each(1)], first), [1], [1]);
    })
    .reduce((sum, next) => add(g, sum, next));
  const never = g.op('Cast', [g.ints(0)], { type: 'bool', shape: [1] }, { to: ELEMENT_TYPES.bool });
  return values.map((value) => g.op('Where', [never, element, value], value));
}

function elements({ shape }: Value): number {
  return shape.reduce<number>((product, dim) => product * (dim as number), 1);
}

/** Linears of which some have a LoRA that is an input of the graph: y = x Wᵀ + b + (x downᵀ) (scale · up)ᵀ. */
class TrainedLinears extends Linears {
  readonly #g: GraphBuilder;
  readonly #modules: readonly TrainedShape[];
  readonly #matrices = new Map<string, { down: Value; up: Value }>();

  constructor(g: GraphBuilder, weights: Weights, modules: readonly TrainedShape[], compute: ComputeType) {
    super(g, weights);
    this.#g = g;
    this.#modules = modules;
    const number = (value: number): Float16Array | Float32Array =>
      compute === 'float16' ? Float16Array.of(value) : Float32Array.of(value);
    for (const { module, rank, scale, inFeatures, outFeatures } of modules) {
      const down = cast(g, g.input(`${module}.down`, 'float32', [rank, inFeatures]), compute);
      const up = cast(g, g.input(`${module}.up`, 'float32', [outFeatures, rank]), compute);
      this.#matrices.set(module, { down, up: mul(g, up, g.constant(number(scale), [])) });
    }
  }

  /** The matrices of a block's modules, `down` before `up`. */
  trained(path: string): Value[] {
    return trainedIn(this.#modules, path).flatMap(({ module }) => {
      const { down, up } = this.#matrices.get(module)!;
      return [down, up];
    });
  }

  override apply(x: Value, path: string): Value {
    const y = super.apply(x, path);
    const matrices = this.#matrices.get(path);
    if (!matrices) return y;
    return linearOnto(this.#g, linear(this.#g, x, matrices.down, null), matrices.up, y);
  }
}
