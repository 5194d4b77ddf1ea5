import { checkTiling, cut, paste, planAxis, planTiles, type Planes } from './tiling.ts';

const SIDES = [1, 7, 16, 17, 23, 31, 64, 65, 100, 128, 256];
const TILES = [
  { tile: 16, halo: 0 },
  { tile: 16, halo: 1 },
  { tile: 16, halo: 4 },
  { tile: 7, halo: 3 },
  { tile: 1, halo: 2 },
  { tile: 64, halo: 8 },
];
const cases = SIDES.flatMap((side) => TILES.map((tiling) => ({ side, ...tiling })));

test.each(cases)('side $side, tiles of $tile that see $halo further', ({ side, tile, halo }) => {
  const { length, starts, bounds } = planAxis(side, tile, halo);
  expect(length).toBeLessThanOrEqual(Math.max(tile, 4 * halo));
  expect(starts[0]).toBe(0);
  expect(starts.at(-1)! + length).toBe(side);
  expect([bounds[0], bounds.at(-1)]).toEqual([0, side]);
  for (const [i, start] of starts.entries()) {
    const [begin, end] = [bounds[i]!, bounds[i + 1]!];
    expect(end).toBeGreaterThan(begin);
    // To the halo or to the border of the picture.
    expect(start).toBeLessThanOrEqual(Math.max(begin - halo, 0));
    expect(start + length).toBeGreaterThanOrEqual(Math.min(end + halo, side));
  }
});

test('no tile is longer than as many need', () => {
  expect(planAxis(128, 32, 1)).toEqual({
    length: 28,
    starts: [0, 25, 50, 75, 100],
    bounds: [0, 26, 51, 76, 101, 128],
  });
});

test.each([
  { height: 23, width: 10 },
  { height: 5, width: 40 },
  { height: 3, width: 3 },
])('what tiles answer for makes up the picture: $height x $width', ({ height, width }) => {
  const whole: Planes = {
    data: Float32Array.from({ length: 3 * height * width * 4 }, (_, i) => Math.sin(i)),
    channels: 3,
    height: 2 * height,
    width: 2 * width,
  };
  const out = { ...whole, data: new Float32Array(whole.data.length).fill(Number.NaN) };
  for (const tile of planTiles(height, width, 8, 1)) {
    const piece = cut(whole, tile, 2);
    expect([piece.height, piece.width]).toEqual(tile.size.map((side) => 2 * side));
    paste(out, piece.data, tile, 2);
  }
  expect(out.data).toEqual(whole.data);
});

test.each([
  [{ above: 0, tile: 8 }, 'tiling.above: found 0'],
  [{ above: 8, tile: 0 }, 'tiling.tile: found 0'],
  [{ above: 8, tile: 1.5 }, 'tiling.tile: found 1.5'],
  [{ above: Number.NaN, tile: 8 }, 'tiling.above: found NaN'],
])('%j is refused', (tiling, message) => {
  expect(() => checkTiling(tiling)).toThrow(message);
});
