import { backward } from '../autodiff/backward.ts';
import type { TransformerSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type Value } from '../graph/builder.ts';
import { Linears } from '../graph/linears.ts';
import { cast, concat, layerNorm, linear, linearOnto, mul, reshape, splitRows } from '../graph/ops.ts';
import { type ComputeType, GraphWeights, type WeightLocator } from '../graph/weights.ts';
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
  run: (ctx: BlockContext, state: readonly Value[]) => Value[];
}

/** The bodies of a stage get a context of their own. */
type Enter = (body: GraphBuilder, path: string) => BlockContext & { linears: TrainedLinears };

/**
 * Forward and backward pass of the whole token path for one picture, its weights in memory once:
 *
 *   latents [S, inChannels], target [S, outChannels], text [T, jointDim], modulation [M], cos and sin
 *   [T + S, headDim / 2], slope [] = d(what is differentiated) / d(loss), <module>.down and .up; bool forward [], always
 *   true, and backward [], whether there are to be gradients
 *     -> loss [], the mean squared error of the velocity, and gradients:<block> of what is trained in a block, end to
 *        end in the order of {@link trainedIn}; without a backward pass they are zero
 *
 * All others fp32. The forward pass keeps the input of every block; the backward pass computes each block anew from
 * it. The gradient of `up` is that of scale · up.
 *
 * Either pass through a block is the branch of an If. ONNX Runtime plans the memory of each body on its own, in a time
 * that grows with the square of its nodes: minutes for all of FLUX.1's in one graph. And an If runs when all that its
 * branches take is there, so that a block is not computed anew before its gradients come in.
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
  const [goForward, goBackward] = ['forward', 'backward'].map((name) => g.input(name, 'bool', [])) as [
    Value,
    Value,
  ];
  const matrices = loraInputs(g, modules);
  const modulation = new RowModulation(g, narrow(row), spec);
  const linears = new Linears(g, new GraphWeights(g, locator, compute));
  const ctx: BlockContext = { g, linears, spec, modulation, cos, sin };
  const enter: Enter = (body, path) => ({
    ...ctx,
    g: body,
    linears: new TrainedLinears(body, new GraphWeights(body, locator, compute), matrices, path, compute),
    modulation: modulation.within(body),
  });

  const stages = blocks(spec);
  const kept: Value[][] = [
    [linears.apply(narrow(latents), 'x_embedder'), linears.apply(narrow(text), 'context_embedder')],
  ];
  for (const stage of stages) kept.push(forwardPass(g, goForward, stage, enter, kept.at(-1)!));

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
  for (const [i, stage] of [...stages.entries()].toReversed()) {
    // Nothing before the first block is trained.
    const through = i > 0;
    const found = backwardPass(g, goBackward, stage, enter, { inputs: kept[i]!, slopes, through });
    gradients.push([`${GRADIENTS}${stage.path}`, found.gradients]);
    slopes = found.slopes;
  }
  // Results are computed from the last to the first.
  for (const [name, value] of gradients.toReversed()) g.output(name, value);
  g.output('loss', loss);
  return g;
}

/** What comes out of a block. */
function forwardPass(
  g: GraphBuilder,
  condition: Value,
  { path, run }: Stage,
  enter: Enter,
  inputs: readonly Value[],
): Value[] {
  const body = g.body(`forward:${path}`);
  const outputs = run(enter(body, path), inputs);
  return branch(g, condition, body, outputs, () => inputs.slice(0, outputs.length));
}

/** The block computed anew: gradients of its inputs, if asked for, and of its LoRA matrices end to end, fp32. */
function backwardPass(
  g: GraphBuilder,
  condition: Value,
  { path, run }: Stage,
  enter: Enter,
  { inputs, slopes, through }: { inputs: readonly Value[]; slopes: readonly Value[]; through: boolean },
): { slopes: Value[]; gradients: Value } {
  const body = g.body(`backward:${path}`);
  const ctx = enter(body, path);
  const outputs = run(ctx, inputs);
  const seeds = new Map(outputs.map((output, j): [Value, Value] => [output, slopes[j]!]));
  const onward = through ? inputs : [];
  const found = backward(body, seeds, [...onward, ...ctx.linears.trained]);
  const passed = found.slice(0, onward.length);
  const trained = found.slice(onward.length);
  const flat = concat(
    body,
    trained.map((gradient) => reshape(body, gradient, [-1], [elements(gradient)])),
    0,
  );
  const results = branch(g, condition, body, [...passed, cast(body, flat, 'float32')], (skip) => {
    const shape = skip.ints(...(flat.shape as number[]));
    return [...onward, skip.op('ConstantOfShape', [shape], { type: 'float32', shape: flat.shape })];
  });
  return { slopes: results.slice(0, -1), gradients: results.at(-1)! };
}

/** Results of `body` where the condition holds; otherwise those of `instead`, which have their types and ranks. */
function branch(
  g: GraphBuilder,
  condition: Value,
  body: GraphBuilder,
  results: readonly Value[],
  instead: (skip: GraphBuilder) => readonly Value[],
): Value[] {
  const skip = g.body(`skip:${body.name}`);
  results.forEach((value, i) => body.output(`${body.name}${i}`, value));
  instead(skip).forEach((value, i) => skip.output(`${skip.name}${i}`, value));
  const branches = { then_branch: { graph: body }, else_branch: { graph: skip } };
  return g.ops('If', [condition], results, branches);
}

/** The trained modules of a block, in the order in which a forward pass uses them. */
export function trainedIn<Module extends TrainedShape>(modules: readonly Module[], path: string): Module[] {
  return modules.filter(({ module }) => module.startsWith(path));
}

function blocks({ doubleBlocks, singleBlocks }: TransformerSpec): Stage[] {
  const double = (i: number): Stage => ({
    path: `transformer_blocks.${i}.`,
    run: (ctx, [img, txt]) => {
      const out = doubleBlock(ctx, i, img!, txt!);
      return [out.img, out.txt];
    },
  });
  const single = (i: number): Stage => ({
    path: `single_transformer_blocks.${i}.`,
    run: (ctx, state) => [singleBlock(ctx, i, joint(ctx.g, state))],
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

function elements({ shape }: Value): number {
  return shape.reduce<number>((product, dim) => product * (dim as number), 1);
}

interface Lora {
  shape: TrainedShape;
  down: Value;
  up: Value;
}

function loraInputs(g: GraphBuilder, modules: readonly TrainedShape[]): Lora[] {
  return modules.map((shape) => ({
    shape,
    down: g.input(`${shape.module}.down`, 'float32', [shape.rank, shape.inFeatures]),
    up: g.input(`${shape.module}.up`, 'float32', [shape.outFeatures, shape.rank]),
  }));
}

/** Linears of a block, some with a LoRA: y = x Wᵀ + b + (x downᵀ) (scale · up)ᵀ. */
class TrainedLinears extends Linears {
  readonly #g: GraphBuilder;
  readonly #matrices = new Map<string, [down: Value, up: Value]>();

  constructor(
    g: GraphBuilder,
    weights: GraphWeights,
    loras: readonly Lora[],
    path: string,
    compute: ComputeType,
  ) {
    super(g, weights);
    this.#g = g;
    const number = (value: number): Float16Array | Float32Array =>
      compute === 'float16' ? Float16Array.of(value) : Float32Array.of(value);
    for (const { shape, down, up } of loras) {
      if (!shape.module.startsWith(path)) continue;
      const scaled = mul(g, cast(g, up, compute), g.constant(number(shape.scale), []));
      this.#matrices.set(shape.module, [cast(g, down, compute), scaled]);
    }
  }

  /** The matrices of all modules, in the order of {@link trainedIn}. */
  get trained(): Value[] {
    return [...this.#matrices.values()].flat();
  }

  override apply(x: Value, path: string): Value {
    const y = super.apply(x, path);
    const matrices = this.#matrices.get(path);
    if (!matrices) return y;
    const [down, up] = matrices;
    return linearOnto(this.#g, linear(this.#g, x, down, null), up, y);
  }
}
