import type { TransformerSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import type { Linears } from '../graph/linears.ts';
import { add, cast, gather, mul } from '../graph/ops.ts';
import { DeviceLinears, DeviceLora, DevicePlainLinears, type LoraGroup } from '../graph/device-lora.ts';
import { type ComputeType, GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { type BlockContext, doubleBlockGroups, singleBlockGroups } from './blocks.ts';
import { modulationLayout, RowModulation } from './modulation.ts';
import { velocity } from './token-path.ts';

/** What all steps of a run share. */
interface Shared {
  spec: TransformerSpec;
  locator: WeightLocator;
  compute: ComputeType;
  /** Float32: latents [S, inChannels], a row of modulations per step [K, M], and the steps' lengths [K]. */
  latents: Value;
  modulation: Value;
  deltas: Value;
  /** In the compute type. */
  context: Value;
  cos: Value;
  sin: Value;
}

type MakeLinears = (g: GraphBuilder, weights: GraphWeights) => Linears;

/**
 * The token path for a device: any number of denoising steps in one run, with or without LoRAs.
 *
 *   latents [S, inChannels], context [T, hidden], modulation [K, M], cos and sin [T + S, headDim / 2], deltas [K],
 *   adapted and wide bool [], those of DeviceLora for each LoraSet, and room int64 [1], a number of floats that are
 *   made for the sake of their memory
 *     -> latents [S, inChannels] after K Euler steps x += delta v
 *
 * What is an input crosses the bus in every run, and LoRAs of FLUX.1 are hundreds of MB: K steps share that. The
 * weights are in memory once for both bodies of the branch, and a run without LoRAs does not pay for the other.
 */
export function buildDeviceTokenPath(
  spec: TransformerSpec,
  locator: WeightLocator,
  compute: ComputeType,
): GraphModel {
  const g = new GraphBuilder('token-path');
  const narrow = (x: Value): Value => cast(g, x, compute);
  const shared: Shared = {
    spec,
    locator,
    compute,
    latents: g.input('latents', 'float32', ['S', spec.inChannels]),
    modulation: g.input('modulation', 'float32', ['K', modulationLayout(spec).size]),
    deltas: g.input('deltas', 'float32', ['K']),
    context: narrow(g.input('context', 'float32', ['T', spec.hiddenSize])),
    cos: narrow(g.input('cos', 'float32', ['T+S', spec.headDim / 2])),
    sin: narrow(g.input('sin', 'float32', ['T+S', spec.headDim / 2])),
  };
  const adapt = (set: LoraSet): { graph: GraphBuilder } => {
    const body = g.body(set);
    const lora = new DeviceLora(set, g, body, loraGroups(spec, locator, set), compute);
    return branch(body, shared, (inner, weights) => new DeviceLinears(inner, weights, lora));
  };
  const either = g.body('adapted');
  const wide = g.input('wide', 'bool', []);
  const [all, attention] = [adapt('all'), adapt('attention')];
  const chosen = { then_branch: all, else_branch: attention };
  either.output('adapted.denoised', either.op('If', [wide], shared.latents, chosen));
  const denoised = g.op('If', [g.input('adapted', 'bool', [])], shared.latents, {
    then_branch: { graph: either },
    else_branch: branch(g.body('plain'), shared, (inner, weights) => new DevicePlainLinears(inner, weights)),
  });
  g.output('denoised', denoised);
  const room = g.input('room', 'int64', [1]);
  const values = g.op('ConstantOfShape', [room], { type: 'float32', shape: ['room'] });
  g.output('room.size', g.op('Shape', [values], { type: 'int64', shape: [1] }));
  return g.build();
}

/**
 * The modules that LoRAs may change in one of the graph's bodies: those of attention, which most LoRAs train and which
 * are half of what a LoRA on all costs, or all.
 */
export type LoraSet = 'attention' | 'all';

/** The linears of a set by shared operand: what a DeviceLora of this graph is made of. */
export function loraGroups(spec: TransformerSpec, locator: WeightLocator, set: LoraSet): LoraGroup[] {
  const range = (count: number): number[] => Array.from({ length: count }, (_, i) => i);
  return [
    ['x_embedder'],
    ...range(spec.doubleBlocks).flatMap(doubleBlockGroups),
    ...range(spec.singleBlocks).flatMap(singleBlockGroups),
    ['proj_out'],
  ].flatMap((group) => {
    const paths = set === 'all' ? group : group.filter((path) => path.includes('.attn.'));
    if (paths.length === 0) return [];
    const shapes = paths.map((path) => locator.locate(`${path}.weight`).shape as [number, number]);
    return [{ paths, inFeatures: shapes[0]![1], outFeatures: shapes.map(([out]) => out) }];
  });
}

/** A body of the branch: a loop over the rows of the modulation. */
function branch(
  g: GraphBuilder,
  { latents, deltas, ...shared }: Shared,
  linearsOf: MakeLinears,
): { graph: GraphBuilder } {
  const { name } = g;
  const step = g.body(`${name}.step`);
  const index = step.input(`${name}.index`, 'int64', []);
  const more = step.input(`${name}.more`, 'bool', []);
  const x = step.input(`${name}.x`, 'float32', latents.shape);
  const { compute, context, cos, locator, modulation, sin, spec } = shared;
  const weights = new GraphWeights(step, locator, compute);
  const row = cast(step, gather(step, modulation, index), compute);
  const ctx: BlockContext = {
    g: step,
    linears: linearsOf(step, weights),
    spec,
    modulation: new RowModulation(step, row, spec),
    cos,
    sin,
  };
  const slope = cast(step, velocity(ctx, cast(step, x, compute), context), 'float32');
  step.output(`${name}.go_on`, more);
  step.output(`${name}.next`, add(step, x, mul(step, slope, gather(step, deltas, index))));

  const count = g.op('Size', [deltas], { type: 'int64', shape: [] });
  g.output(`${name}.denoised`, g.op('Loop', [count, null, latents], latents, { body: { graph: step } }));
  return { graph: g };
}
