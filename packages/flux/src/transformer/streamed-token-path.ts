import type { TransformerSpec } from '../checkpoint/spec.ts';
import type { GraphBuilder, Value } from '../graph/builder.ts';
import { cast, layerNorm } from '../graph/ops.ts';
import type { StreamedLinears } from '../graph/streamed-linears.ts';
import type { UnitKind } from '../graph/streamed-units.ts';
import type { ComputeType, WeightLocator } from '../graph/weights.ts';
import { StreamedGraph, type StreamedSession, type StreamedUnit } from '../runtime/streamed-graph.ts';
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
import { type Adaptation, eulerSteps, type TokenPath, type TokenPathFeeds } from './parts.ts';

type Kind = 'stem' | 'double' | 'single' | 'head';

/** Tokens as they cross the bus, in the type that the graph computes in. */
type Tokens = Float32Array | Float16Array;

const DOUBLE = 'transformer_blocks';
const SINGLE = 'single_transformer_blocks';

/**
 * The token path for devices that its weights do not fit: every block is read from the checkpoint when its turn comes,
 * while the one before it runs. Tokens return to the host between blocks. Any module may take a LoRA. Between two
 * steps the device holds nothing.
 */
export class StreamedTokenPath implements TokenPath {
  readonly #spec: TransformerSpec;
  readonly #compute: ComputeType;
  readonly #options: SessionOptions;
  readonly #graph: StreamedGraph<Kind>;
  readonly #units: readonly StreamedUnit[];
  readonly #stream: WeightStream;
  readonly #slots: ReadonlyMap<string, ModulationSlot>;

  constructor(spec: TransformerSpec, locator: WeightLocator, compute: ComputeType, options: SessionOptions) {
    this.#spec = spec;
    this.#compute = compute;
    this.#options = options;
    this.#graph = new StreamedGraph('token-path', locator, tokenPathKinds(spec, compute), options);
    const blocks = (kind: Kind, path: string, count: number): StreamedUnit[] =>
      Array.from({ length: count }, (_, i) =>
        this.#graph.unit(kind, (name) => name.replace(`${path}.0.`, `${path}.${i}.`)),
      );
    this.#units = [
      this.#graph.unit('stem'),
      ...blocks('double', DOUBLE, spec.doubleBlocks),
      ...blocks('single', SINGLE, spec.singleBlocks),
      this.#graph.unit('head'),
    ];
    this.#stream = new WeightStream(this.#units.map(({ weights }) => weights));
    this.#slots = new Map(modulationLayout(spec).slots.map((slot) => [slot.name, slot]));
  }

  async advance(
    feeds: TokenPathFeeds,
    lengths: Float32Array,
    { deltas }: Pick<Adaptation, 'deltas'>,
  ): Promise<Float32Array> {
    let opened: Promise<StreamedSession> | null = null;
    const open = (): Promise<StreamedSession> => (opened ??= this.#graph.open(this.#units, deltas));
    try {
      return await eulerSteps(feeds, lengths, (step) => this.#velocity(step, open));
    } finally {
      await (opened as Promise<StreamedSession> | null)?.then(
        (session) => session.release(),
        () => {},
      );
    }
  }

  stepsPerRun(): number {
    return 1;
  }

  async #velocity(feeds: TokenPathFeeds, open: () => Promise<StreamedSession>): Promise<Float32Array> {
    const { hiddenSize } = this.#spec;
    const { latents, context, modulation } = feeds;
    const narrow = (data: Float32Array): Tokens =>
      this.#compute === 'float16' ? new Float16Array(data) : data;
    const rows = (data: Tokens): Feed => ({ data, dims: [data.length / hiddenSize, hiddenSize] });
    const angles = {
      cos: { ...feeds.cos, data: narrow(feeds.cos.data) },
      sin: { ...feeds.sin, data: narrow(feeds.sin.data) },
    };
    let [img, txt] = [narrow(new Float32Array(0)), narrow(context.data)];
    let joint: Tokens | null = null;
    let index = 0;
    for await (const weights of this.#stream.pass()) {
      const unit = this.#units[index++]!;
      // The first time this makes the session, which blocks the thread: meanwhile the first block is read.
      const session = await open();
      const run = <Name extends string, Values extends Tokens = Tokens>(
        inputs: Record<string, Feed>,
        fetches: readonly Name[],
        modules: readonly string[] = [],
      ) => {
        const all = { ...inputs, ...weights, ...this.#modulation(modulation.data, unit, modules) };
        return session.run<Name, Values>(unit, all, fetches);
      };
      const kind = unit.kind as Kind;
      switch (kind) {
        case 'stem':
          img = (await run({ latents }, ['img.out']))['img.out'].data;
          break;
        case 'double': {
          const inputs = { img: rows(img), txt: rows(txt), ...angles };
          const modules = [`${DOUBLE}.0.norm1`, `${DOUBLE}.0.norm1_context`];
          const out = await run(inputs, ['img.out', 'txt.out'], modules);
          [img, txt] = [out['img.out'].data, out['txt.out'].data];
          break;
        }
        case 'single': {
          const inputs: Record<string, Feed> = { joint: rows(joint ?? joined(txt, img)), ...angles };
          joint = (await run(inputs, ['joint.out'], [`${SINGLE}.0.norm`]))['joint.out'].data;
          break;
        }
        case 'head': {
          const inputs = { img: rows(joint?.subarray(txt.length) ?? img) };
          return (await run<'velocity', Float32Array>(inputs, ['velocity'], ['norm_out'])).velocity.data;
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
 * The units of the token path, weights named as in block 0. Tokens and angles come and go in the type `compute`.
 *
 *   stem    latents fp32 [S, inChannels] -> img.out [S, hidden]
 *   double  img [S, hidden], txt [T, hidden] -> img.out, txt.out
 *   single  joint [T + S, hidden] -> joint.out
 *   head    img [S, hidden] -> velocity fp32 [S, outChannels]
 */
export function tokenPathKinds(spec: TransformerSpec, compute: ComputeType): Record<Kind, UnitKind> {
  const tokens = (g: GraphBuilder, name: string, rows: string): Value =>
    g.input(name, compute, [rows, spec.hiddenSize]);
  const context = (g: GraphBuilder, linears: StreamedLinears): BlockContext => {
    const [cos, sin] = ['cos', 'sin'].map((name) => g.input(name, compute, ['N', spec.headDim / 2])) as [
      Value,
      Value,
    ];
    return { g, linears, spec, modulation: new InputModulation(g, spec, compute), cos, sin };
  };
  return {
    stem: {
      compute,
      build(g, linears) {
        const latents = g.input('latents', 'float32', ['S', spec.inChannels]);
        return { 'img.out': linears.apply(cast(g, latents, compute), 'x_embedder') };
      },
    },
    double: {
      compute,
      build(g, linears) {
        const { img, txt } = doubleBlock(
          context(g, linears),
          0,
          tokens(g, 'img', 'S'),
          tokens(g, 'txt', 'T'),
        );
        return { 'img.out': img, 'txt.out': txt };
      },
    },
    single: {
      compute,
      build: (g, linears) => ({
        'joint.out': singleBlock(context(g, linears), 0, tokens(g, 'joint', 'N')),
      }),
    },
    head: {
      compute,
      build(g, linears) {
        const modulation = new InputModulation(g, spec, compute);
        const [shift, scale] = modulation.chunks('norm_out', FINAL_CHUNKS) as [Value, Value];
        const normed = layerNorm(g, tokens(g, 'img', 'S'), scale, shift, 1e-6);
        return { velocity: cast(g, linears.apply(normed, 'proj_out'), 'float32') };
      },
    },
  };
}

function joined(a: Tokens, b: Tokens): Tokens {
  const out =
    a instanceof Float16Array ? new Float16Array(a.length + b.length) : new Float32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}
