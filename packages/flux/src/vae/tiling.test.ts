import { axisWeights, checkTiling, planAxis, runTiled, type Planes } from './tiling.ts';

const SIDES = [1, 7, 16, 17, 23, 31, 64, 65, 100, 128, 256];
const TILINGS = [
  { tile: 16, overlap: 0 },
  { tile: 16, overlap: 4 },
  { tile: 16, overlap: 15 },
  { tile: 7, overlap: 3 },
  { tile: 64, overlap: 16 },
];
const cases = SIDES.flatMap((side) => TILINGS.map((tiling) => ({ side, ...tiling })));

test.each(cases)('side $side, tiles of $tile that share $overlap', ({ side, ...tiling }) => {
  const { length, starts } = planAxis(side, tiling);
  expect(length).toBe(Math.min(side, tiling.tile));
  expect(starts[0]).toBe(0);
  expect(starts.at(-1)! + length).toBe(side);
  for (const [i, start] of starts.slice(1).entries()) {
    expect(start).toBeGreaterThan(starts[i]!);
    expect(starts[i]! + length - start).toBeGreaterThanOrEqual(tiling.overlap);
  }
  const scale = 4;
  const sums = new Float64Array(side * scale);
  for (const [i, weights] of axisWeights({ length, starts }, scale).entries()) {
    expect(Math.min(...weights)).toBeGreaterThanOrEqual(0);
    for (const [x, weight] of weights.entries()) sums[starts[i]! * scale + x]! += weight;
  }
  for (const sum of sums) expect(Math.abs(sum - 1)).toBeLessThan(1e-6);
});

test('what two tiles share goes over from one to the other in equal steps', () => {
  const [first, second] = axisWeights(planAxis(12, { tile: 8, overlap: 4 }), 1) as [
    Float32Array,
    Float32Array,
  ];
  expect([...second].slice(0, 5)).toEqual([0.125, 0.375, 0.625, 0.875, 1]);
  expect([...first].slice(3)).toEqual([1, 0.875, 0.625, 0.375, 0.125]);
});

function ramp(channels: number, height: number, width: number): Planes {
  const data = Float32Array.from({ length: channels * height * width }, (_, i) => Math.sin(i / 7));
  return { data, channels, height, width };
}

/** Every value becomes a square of `scale` x `scale`. */
function enlarge({ data, channels, height, width }: Planes, scale: number): Float32Array {
  const [rows, columns] = [height * scale, width * scale];
  return Float32Array.from({ length: channels * rows * columns }, (_, i) => {
    const [c, y, x] = [Math.floor(i / (rows * columns)), Math.floor(i / columns) % rows, i % columns];
    return data[(c * height + Math.floor(y / scale)) * width + Math.floor(x / scale)]!;
  });
}

test.each([
  { height: 23, width: 10 },
  { height: 5, width: 40 },
  { height: 16, width: 16 },
  { height: 3, width: 3 },
])('what does not look beyond a position gives the same in tiles: $height x $width', async (size) => {
  const whole = ramp(3, size.height, size.width);
  const sizes = new Set<string>();
  const tiling = { above: 1, tile: 8, overlap: 3 };
  const found = await runTiled(whole, tiling, { input: 1, output: 4 }, async (tile) => {
    sizes.add(`${tile.height}x${tile.width}`);
    return enlarge(tile, 4);
  });
  const expected = enlarge(whole, 4);
  expect(found).toHaveLength(expected.length);
  expect(Math.max(...found.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-6);
  expect([...sizes]).toEqual([`${Math.min(size.height, 8)}x${Math.min(size.width, 8)}`]);
});

test('an error of a tile is the error of the picture', async () => {
  let runs = 0;
  const failing = runTiled(
    ramp(1, 20, 20),
    { above: 1, tile: 8, overlap: 2 },
    { input: 1, output: 1 },
    async (tile) => {
      if (++runs === 3) throw new Error('the third');
      return tile.data;
    },
  );
  await expect(failing).rejects.toThrow('the third');
  expect(runs).toBe(3);
});

test.each([
  [{ above: 0, tile: 8, overlap: 2 }, 'tiling.above: found 0'],
  [{ above: 8, tile: 0, overlap: 0 }, 'tiling.tile: found 0'],
  [{ above: 8, tile: 1.5, overlap: 0 }, 'tiling.tile: found 1.5'],
  [{ above: 8, tile: 8, overlap: 8 }, 'tiling.overlap: found 8, allowed are whole numbers from 0 to 7'],
  [{ above: 8, tile: 8, overlap: Number.NaN }, 'tiling.overlap: found NaN'],
])('%j is refused', (tiling, message) => {
  expect(() => checkTiling(tiling)).toThrow(message);
});
