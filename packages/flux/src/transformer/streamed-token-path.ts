import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { GraphModel, Value } from '../graph/builder.ts';
import { layerNorm } from '../graph/ops.ts';
import { StreamedLinears } from '../graph/streamed-linears.ts';
import { buildStreamed, cast } from '../graph/streamed-weights.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import type { Deltas } from '../lora/compose.ts';
import { type StreamedUnit, StreamedGraph } from '../runtime/streamed-graph.ts';
import type { Feed, SessionOptions } from '../runtime/session.ts';
import { WeightStream } from '../runtime/weight-stream.ts';
import { type BlockContext, doubleBlock, singleBlock } from './blocks.ts';
import {
  FINAL_CHUNKS,
  InputModulation,
  MODULATION,
  modulationLayout,
  type ModulationSlot,
} from './modulation.ts';
import { type Adaptation, eulerSteps, type Rows, type TokenPath, type TokenPathFeeds } from './parts.ts';

type Kind = 'stem' | 'double' | 'single' | 'head';

const DOUBLE = 'transformer_blocks';
const SINGLE = 'single_transformer_blocks';

/**
 * The token path for devices that its weights do not fit: every block is read from the checkpoint when its turn comes,
 * while the one before it runs. Tokens return to the host between blocks. Any module may take a LoRA.
 */
export class StreamedTokenPath implements TokenPath {
  readonly #spec: TransformerSpec;
  readonly #compute: ComputeType;
  readonly #options: SessionOptions;
  readonly #graphs: Record<Kind, StreamedGraph>;
  readonly #units: readonly { kind: Kind; unit: StreamedUnit }[];
  readonly #stream: WeightStream;
  readonly #slots: ReadonlyMap<string, ModulationSlot>;

  constructor(spec: TransformerSpec, locator: WeightLocator, compute: ComputeType, options: SessionOptions) {
    this.#spec = spec;
    this.#compute = compute;
    this.#options = options;
    const graph = (kind: Kind): StreamedGraph =>
      new StreamedGraph(
        `token-path ${kind}`,
        locator,
        (from, adapted) => buildPart(kind, spec, from, compute, adapted),
        options,
      );
    this.#graphs = {
      stem: graph('stem'),
      double: graph('double'),
      single: graph('single'),
      head: graph('head'),
    };
    const blocks = (kind: Kind, path: string, count: number): { kind: Kind; unit: StreamedUnit }[] =>
      Array.from({ length: count }, (_, i) => ({
        kind,
        unit: this.#graphs[kind].unit((name) => name.replace(`${path}.0.`, `${path}.${i}.`)),
      }));
    this.#units = [
      { kind: 'stem', unit: this.#graphs.stem.unit() },
      ...blocks('double', DOUBLE, spec.doubleBlocks),
      ...blocks('single', SINGLE, spec.singleBlocks),
      { kind: 'head', unit: this.#graphs.head.unit() },
    ];
    this.#stream = new WeightStream(this.#units.map(({ unit }) => unit.weights));
    this.#slots = new Map(modulationLayout(spec).slots.map((slot) => [slot.name, slot]));
  }

  advance(
    feeds: TokenPathFeeds,
    lengths: Float32Array,
    { deltas }: Pick<Adaptation, 'deltas'>,
  ): Promise<Float32Array> {
    return eulerSteps(feeds, lengths, (step) => this.#velocity(step, deltas));
  }

  stepsPerRun(): number {
    return 1;
  }

  async #velocity(feeds: TokenPathFeeds, deltas: Deltas): Promise<Float32Array> {
    const { hiddenSize } = this.#spec;
    const { latents, context, modulation, cos, sin } = feeds;
    const rows = (data: Float32Array): Rows => ({ data, dims: [data.length / hiddenSize, hiddenSize] });
    let [img, txt] = [latents.data, context.data];
    let joint: Float32Array | null = null;
    let index = 0;
    for await (const weights of this.#stream.pass()) {
      const { kind, unit } = this.#units[index++]!;
      const run = <Name extends string>(
        inputs: Record<string, Feed>,
        fetches: readonly Name[],
        modules: readonly string[] = [],
      ): Promise<Record<Name, Rows>> => {
        const all = { ...inputs, ...weights, ...this.#modulation(modulation.data, unit, modules) };
        return this.#graphs[kind].run(unit, all, fetches, deltas);
      };
      switch (kind) {
        case 'stem':
          img = (await run({ latents }, ['img.out']))['img.out'].data;
          break;
        case 'double': {
          const inputs = { img: rows(img), txt: rows(txt), cos, sin };
          const modules = [`${DOUBLE}.0.norm1`, `${DOUBLE}.0.norm1_context`];
          const out = await run(inputs, ['img.out', 'txt.out'], modules);
          [img, txt] = [out['img.out'].data, out['txt.out'].data];
          break;
        }
        case 'single': {
          const inputs: Record<string, Feed> = { joint: rows(joint ?? joined(txt, img)), cos, sin };
          joint = (await run(inputs, ['joint.out'], [`${SINGLE}.0.norm`]))['joint.out'].data;
          break;
        }
        case 'head': {
          const inputs = { img: rows(joint?.subarray(txt.length) ?? img) };
          return (await run(inputs, ['velocity'], ['norm_out'])).velocity.data;
        }
        default:
          kind satisfies never;
      }
    }
    throw new Error('the last unit returns');
  }

  async withWeights(locator: WeightLocator): Promise<StreamedTokenPath> {
    return new StreamedTokenPath(this.#spec, locator, this.#compute, this.#options);
  }

  async release(): Promise<void> {
    await this.#stream.close();
    for (const graph of Object.values(this.#graphs)) await graph.release();
  }

  /** What the graph's `modules` are modulated by in this unit, from the row of the step. */
  #modulation(row: Float32Array, unit: StreamedUnit, modules: readonly string[]): Record<string, Feed> {
    return Object.fromEntries(
      modules.map((module) => {
        const { offset, size } = this.#slots.get(unit.rename(module))!;
        return [`${MODULATION}${module}`, { data: row.subarray(offset, offset + size), dims: [size] }];
      }),
    );
  }
}

/**
 * The graph of one kind of unit; tokens come and go as fp32, weights are named as in block 0.
 *
 *   stem    latents [S, inChannels] -> img.out [S, hidden]
 *   double  img [S, hidden], txt [T, hidden] -> img.out, txt.out
 *   single  joint [T + S, hidden] -> joint.out
 *   head    img [S, hidden] -> velocity [S, outChannels]
 */
function buildPart(
  kind: Kind,
  spec: TransformerSpec,
  locator: WeightLocator,
  compute: ComputeType,
  adapted: ReadonlySet<string>,
): GraphModel {
  return buildStreamed(`token-path ${kind}`, locator, compute, (g, weights) => {
    const linears = new StreamedLinears(g, weights, adapted);
    const modulation = new InputModulation(g, spec, compute);
    const input = (name: string, rows: string, width: number): Value =>
      cast(g, g.input(name, 'float32', [rows, width]), compute);
    const output = (name: string, value: Value): void => g.output(name, cast(g, value, 'float32'));
    const context = (): BlockContext => {
      const [cos, sin] = [input('cos', 'N', spec.headDim / 2), input('sin', 'N', spec.headDim / 2)];
      return { g, linears, spec, modulation, cos, sin };
    };
    switch (kind) {
      case 'stem':
        output('img.out', linears.apply(input('latents', 'S', spec.inChannels), 'x_embedder'));
        break;
      case 'double': {
        const [img, txt] = [input('img', 'S', spec.hiddenSize), input('txt', 'T', spec.hiddenSize)];
        const out = doubleBlock(context(), 0, img, txt);
        output('img.out', out.img);
        output('txt.out', out.txt);
        break;
      }
      case 'single':
        output('joint.out', singleBlock(context(), 0, input('joint', 'N', spec.hiddenSize)));
        break;
      case 'head': {
        const img = input('img', 'S', spec.hiddenSize);
        const [shift, scale] = modulation.chunks('norm_out', FINAL_CHUNKS) as [Value, Value];
        output('velocity', linears.apply(layerNorm(g, img, scale, shift, 1e-6), 'proj_out'));
        break;
      }
      default:
        kind satisfies never;
    }
  });
}

function joined(a: Float32Array, b: Float32Array): Float32Array {
  const out = new Float32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}
