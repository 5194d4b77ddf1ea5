import { FluxError } from '../errors.ts';

/** How a picture is cut for the autoencoder. All in latents: one of them is `scaleFactor` pixels. */
export interface Tiling {
  /** A picture with no side above this many latents is done in one piece. */
  above: number;
  /** Side of a tile; a side of the picture that is shorter gives tiles of that side. */
  tile: number;
  /** What neighbouring tiles share at least; more where tiles are moved so that the last ends at the border. */
  overlap: number;
}

/**
 * Measured on models/mini against decoding in one piece, in 1/255: largest and mean difference, and the mean slope of
 * the difference (per pixel, along x) where tiles overlap and elsewhere.
 *
 * | picture                    | tile | overlap         | max  | mean | slope in overlaps | elsewhere |
 * | -------------------------- | ---- | --------------- | ---- | ---- | ----------------- | --------- |
 * | sky with a disc, 512 px    | 16   | 32 px           | 58.6 | 8.01 | 0.275             | 0.226     |
 * | "                          | 16   | 64 px           | 56.7 | 8.47 | 0.186             | 0.382     |
 * | "                          | 32   | 128 px          | 46.7 | 4.46 | 0.077             | 0.169     |
 * | "                          | 48   | 256 px          | 10.0 | 1.58 | 0.028             | 0.050     |
 * | same, 1024 px              | 64   | 256 px          | 45.0 | 4.37 | 0.037             | 0.081     |
 * | "                          | 96   | 512 px          | 10.4 | 1.57 | 0.014             | 0.025     |
 * | strawberry, 1024 px        | 64   | 256 px          | 15.1 | 1.79 | 0.056             | 0.056     |
 * | "                          | 96   | 512 px          | 9.2  | 1.23 | 0.033             | 0.042     |
 *
 * The overlap is what the tiles then share; 64 latents and an overlap of 8, 16 or 32 are one plan on 128. No edge shows
 * from 32 latents on, but below 96 a tile's tone does on plain areas: its group norms see the tile alone. At 1024 px tiles
 * of 96 cost what tiles of 64 cost, 2.25 times one piece. Not measured for FLUX.1.
 */
export const DEFAULT_TILING: Readonly<Tiling> = Object.freeze({ above: 96, tile: 96, overlap: 16 });

/** Values [channels, height, width]. */
export interface Planes {
  data: Float32Array;
  channels: number;
  height: number;
  width: number;
}

/** The tiles along one side of a picture: all of one length, in order, the first at 0, the last ending at the end. */
export interface AxisPlan {
  length: number;
  starts: number[];
}

/** @throws FluxError request_invalid for lengths that make no plan */
export function checkTiling({ above, tile, overlap }: Tiling): void {
  const demand = (name: string, found: number, lowest: number, highest: number): void => {
    if (Number.isSafeInteger(found) && found >= lowest && found <= highest) return;
    const upTo = highest === Number.MAX_SAFE_INTEGER ? '' : ` to ${highest}`;
    throw new FluxError(
      'request_invalid',
      `tiling.${name}: found ${found}, allowed are whole numbers from ${lowest}${upTo}`,
    );
  };
  demand('above', above, 1, Number.MAX_SAFE_INTEGER);
  demand('tile', tile, 1, Number.MAX_SAFE_INTEGER);
  demand('overlap', overlap, 0, tile - 1);
}

/**
 * As few tiles as cover `side` with the overlap asked for, moved apart evenly instead of cut at the end: every run of
 * the graph then has the same sizes, so that cuDNN looks for its algorithms once, and no tile sees less than the others.
 */
export function planAxis(side: number, { tile, overlap }: Pick<Tiling, 'tile' | 'overlap'>): AxisPlan {
  if (side <= tile) return { length: side, starts: [0] };
  const room = side - tile;
  const steps = Math.ceil(room / (tile - overlap));
  return {
    length: tile,
    starts: Array.from({ length: steps + 1 }, (_, i) => Math.round((i * room) / steps)),
  };
}

/**
 * What each tile counts at each of its positions; over all tiles it is 1 everywhere. A tile fades in linearly over
 * what it shares with the one before, as in `blend_v` and `blend_h` of diffusers' AutoencoderKL.
 */
export function axisWeights({ length, starts }: AxisPlan, scale: number): Float32Array[] {
  const weights: Float32Array[] = [];
  for (const [i, start] of starts.entries()) {
    const fadeIn = i === 0 ? 0 : (starts[i - 1]! + length - start) * scale;
    const weight = Float32Array.from({ length: length * scale }, (_, x) => Math.min((x + 0.5) / fadeIn, 1));
    // Three tiles meet where an overlap is more than half a tile: what fades in takes from all before it.
    for (const [k, before] of weights.entries()) {
      const offset = (start - starts[k]!) * scale;
      for (let x = offset; x < before.length; x++) before[x]! *= 1 - weight[x - offset]!;
    }
    weights.push(weight);
  }
  return weights;
}

export interface TileScales {
  /** Positions of the input per latent. */
  input: number;
  /** Positions of the result per latent. */
  output: number;
}

/**
 * Runs `run` on overlapping tiles and blends the results linearly, as `tiled_decode` and `tiled_encode` of diffusers'
 * AutoencoderKL do. Input and result of a run are tiles of the same place at the two scales.
 */
export async function runTiled(
  input: Planes,
  tiling: Tiling,
  scales: TileScales,
  run: (tile: Planes) => Promise<Float32Array>,
): Promise<Float32Array> {
  const rows = planAxis(input.height / scales.input, tiling);
  const columns = planAxis(input.width / scales.input, tiling);
  const rowWeights = axisWeights(rows, scales.output);
  const columnWeights = axisWeights(columns, scales.output);
  const height = (input.height / scales.input) * scales.output;
  const width = (input.width / scales.input) * scales.output;
  const tile = { height: rows.length * scales.input, width: columns.length * scales.input };
  let out: Float32Array | null = null;
  for (const [j, top] of rows.starts.entries())
    for (const [i, left] of columns.starts.entries()) {
      const piece = cut(input, { top: top * scales.input, left: left * scales.input, ...tile });
      const result = await run(piece);
      const channels = result.length / (rows.length * columns.length * scales.output ** 2);
      out ??= new Float32Array(channels * height * width);
      addWeighted({ data: out, channels, height, width }, result, {
        top: top * scales.output,
        left: left * scales.output,
        rows: rowWeights[j]!,
        columns: columnWeights[i]!,
      });
    }
  return out!;
}

function cut(
  { data, channels, height, width }: Planes,
  at: { top: number; left: number; height: number; width: number },
): Planes {
  const out = new Float32Array(channels * at.height * at.width);
  for (let c = 0; c < channels; c++)
    for (let y = 0; y < at.height; y++) {
      const from = (c * height + at.top + y) * width + at.left;
      out.set(data.subarray(from, from + at.width), (c * at.height + y) * at.width);
    }
  return { data: out, channels, height: at.height, width: at.width };
}

/** Adds a tile [channels, rows, columns], weighted, to its place. */
function addWeighted(
  out: Planes,
  tile: Float32Array,
  { top, left, rows, columns }: { top: number; left: number; rows: Float32Array; columns: Float32Array },
): void {
  for (let c = 0; c < out.channels; c++)
    for (let y = 0; y < rows.length; y++) {
      const to = (c * out.height + top + y) * out.width + left;
      const from = (c * rows.length + y) * columns.length;
      for (let x = 0; x < columns.length; x++) out.data[to + x]! += rows[y]! * columns[x]! * tile[from + x]!;
    }
}
