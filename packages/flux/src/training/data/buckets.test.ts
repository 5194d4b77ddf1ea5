import { aspectBuckets, nearestBucket } from './buckets.ts';

const text = (buckets: readonly { width: number; height: number }[]) =>
  buckets.map(({ width, height }) => `${width}x${height}`);

test('the buckets of 256', () => {
  expect(text(aspectBuckets(256, 16))).toEqual([
    '176x352',
    '192x336',
    '208x320',
    '224x288',
    '240x272',
    '256x256',
    '272x240',
    '288x224',
    '320x208',
    '336x192',
    '352x176',
  ]);
});

test.each([
  [64, 16],
  [96, 16],
  [512, 16],
  [768, 16],
  [768, 64],
  [1024, 16],
  [1024, 32],
])(
  'of %i in steps of %i: the size multiple, the area within 10 %%, no side twice the other',
  (side, multiple) => {
    const buckets = aspectBuckets(side, multiple);
    expect(text(buckets)).toContain(`${side}x${side}`);
    expect(buckets.length % 2).toBe(1);
    expect(new Set(text(buckets)).size).toBe(buckets.length);
    for (const { width, height } of buckets) {
      expect([width % multiple, height % multiple]).toEqual([0, 0]);
      expect(Math.abs((width * height) / side ** 2 - 1)).toBeLessThanOrEqual(0.1);
      expect(Math.max(width / height, height / width)).toBeLessThanOrEqual(2);
      expect(text(buckets)).toContain(`${height}x${width}`);
    }
    const ratios = buckets.map(({ width, height }) => width / height);
    expect(ratios).toEqual(ratios.toSorted((a, b) => a - b));
  },
);

test('buckets cannot be changed', () => {
  const buckets = aspectBuckets(256, 16);
  expect(Object.isFrozen(buckets) && buckets.every((bucket) => Object.isFrozen(bucket))).toBe(true);
});

test('a resolution that is no multiple is refused', () => {
  for (const resolution of [0, 8, 100, 256.5, Number.NaN])
    expect(() => aspectBuckets(resolution, 16)).toThrow(
      `resolution: found ${resolution}, allowed are multiples of 16`,
    );
});

test('a picture goes where the ratio of its sides changes least', () => {
  const buckets = aspectBuckets(256, 16);
  const chosen = (width: number, height: number) => text([nearestBucket(buckets, { width, height })])[0];
  expect(chosen(4000, 3000)).toBe('288x224');
  expect(chosen(3000, 4000)).toBe('224x288');
  expect(chosen(1920, 1080)).toBe('336x192');
  expect(chosen(101, 100)).toBe('256x256');
  expect(chosen(900, 100)).toBe('352x176');
  // Between 240x272 and the square the border is their geometric mean, 0.9393, not the arithmetic one, 0.9412.
  expect(chosen(940, 1000)).toBe('256x256');
  expect(chosen(939, 1000)).toBe('240x272');
});

test('cropped to squares, every picture has the same size', () => {
  expect(text(aspectBuckets(768, 16, true))).toEqual(['768x768']);
});
