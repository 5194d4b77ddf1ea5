import type { VaeSpec } from '../checkpoint/spec.ts';
import { GraphBuilder, type GraphModel, type Value } from '../graph/builder.ts';
import { GraphWeights, type WeightLocator } from '../graph/weights.ts';
import { VaeLayers } from './layers.ts';
import { TileNorms, WholeNorms } from './norms.ts';

/** Positions per latent along one side: of what goes in, of where the blocks work, of what comes out. */
export interface StageScales {
  input: number;
  work: number;
  output: number;
}

/** One resolution of the autoencoder as a graph of its own: x [1, channels, height, width] -> y. */
export interface Stage {
  readonly name: string;
  readonly graph: GraphModel;
  readonly perLatent: StageScales;
  /** Channels that exist at once, at most, where the blocks work. */
  readonly live: number;
  /** Latents that its convolutions see to each side beyond a position. */
  readonly halo: number;
  /** Its group norms, whose statistics it takes and gives (see {@link TileNorms}); 0 for one that takes no tiles. */
  readonly norms: number;
  readonly groups: number;
}

export interface StageParts extends Pick<Stage, 'name' | 'perLatent' | 'live'> {
  /** Channels of x. */
  entering: number;
  /** Positions that its convolutions see to each side beyond one, where the blocks work. */
  reach: number;
  /** Takes whole pictures only. */
  whole: boolean;
  body: (layers: VaeLayers, x: Value) => Value;
}

export function buildStage(spec: VaeSpec, locator: WeightLocator, parts: StageParts): Stage {
  const { name, perLatent, live, entering, reach, whole, body } = parts;
  const g = new GraphBuilder(name);
  const x = g.input('x', 'float32', [1, entering, 'h', 'w']);
  const tiles = whole ? null : new TileNorms(g, spec.normGroups);
  const kind = tiles ?? new WholeNorms(g, spec.normGroups);
  const bounded = { attention: 'chunked' } as const;
  const layers = new VaeLayers(g, new GraphWeights(g, locator), kind, perLatent.input, bounded);
  const y = body(layers, x);
  tiles?.publish();
  g.output('y', y);
  const halo = Math.ceil(reach / perLatent.work);
  const norms = tiles?.count ?? 0;
  return { name, graph: g.build(), perLatent, live, halo, norms, groups: spec.normGroups };
}

/**
 * Side in latents of the tiles of a stage that take as much memory as tiles of `tile` latents take at `full`, the stage
 * at full resolution.
 */
export function stageSide(stage: Stage, full: Stage, tile: number): number {
  const bytes = ({ live, perLatent }: Stage): number => live * perLatent.work ** 2;
  return Math.floor(tile * Math.sqrt(bytes(full) / bytes(stage)));
}
