import type { Feed, GraphSession, Result } from '../runtime/session.ts';
import { distance, PooledStatistics } from './norms.ts';
import type { Stage } from './stage-graph.ts';
import { cut, paste, planTiles, type Planes, type Tile } from './tiling.ts';

/**
 * Statistics that change by less are those of the picture; see {@link distance}. On pictures of 512 px three passes are
 * within 0.54 of 255 of the picture, two within 3.1, as many as there are norms within 0.02.
 */
const SETTLED = 0.02;

/**
 * Runs one resolution of the autoencoder on a picture, in tiles of `side` latents. With the statistics of the whole
 * picture and a halo as wide as its convolutions reach, a tile's values are those of the picture in one piece. The
 * statistics come from passes over all tiles: in the first each tile uses its own, in each further one those that the
 * one before has found. The first norm's are exact after one pass, the n-th's after n at most, and usually nothing
 * changes any more before that.
 */
export async function runStage(
  session: GraphSession,
  stage: Stage,
  input: Planes,
  side: number,
): Promise<Planes> {
  const { perLatent } = stage;
  const [height, width] = [input.height / perLatent.input, input.width / perLatent.input];
  if (stage.norms === 0) {
    const { y } = await session.run({ x: feed(input) }, ['y']);
    return planes(y);
  }
  const tiles = planTiles(height, width, side, stage.halo);
  let statistics: Float32Array | null = null;
  const run = async (tile: Tile, name: 'y' | 'collected'): Promise<Result> => {
    const place = (latents: readonly number[]): Feed => ({
      data: BigInt64Array.from(latents, BigInt),
      dims: [2],
    });
    const dims = [stage.norms, stage.groups, 2];
    const feeds: Record<string, Feed> = {
      x: feed(cut(input, tile, perLatent.input)),
      statistics: { data: statistics ?? new Float32Array(2 * stage.norms * stage.groups), dims },
      given: { data: Uint8Array.of(statistics ? 1 : 0), dims: [1], type: 'bool' },
      begin: place(tile.begin),
      end: place(tile.end),
    };
    return (await session.run(feeds, [name]))[name];
  };
  if (tiles.length > 1)
    for (let pass = 1; pass <= stage.norms; pass++) {
      const pooled = new PooledStatistics(2 * stage.norms * stage.groups);
      for (const tile of tiles) {
        const [rows, columns] = tile.end.map((end, axis) => end - tile.begin[axis]!) as [number, number];
        pooled.add((await run(tile, 'collected')).data, rows * columns);
      }
      const found = pooled.result();
      const settled = statistics !== null && distance(statistics, found) < SETTLED;
      statistics = found;
      if (settled) break;
    }
  let out: Planes | null = null;
  for (const tile of tiles) {
    const result = await run(tile, 'y');
    const channels = result.dims[1]!;
    const [rows, columns] = [height * perLatent.output, width * perLatent.output];
    out ??= { data: new Float32Array(channels * rows * columns), channels, height: rows, width: columns };
    paste(out, result.data, tile, perLatent.output);
  }
  return out!;
}

function planes({ data, dims }: Result): Planes {
  return { data, channels: dims[1]!, height: dims[2]!, width: dims[3]! };
}

export function feed({ data, channels, height, width }: Planes): Feed {
  return { data, dims: [1, channels, height, width] };
}
