import type { GenerationJob } from '@atelier/shared';
import sharp from 'sharp';
import { type Picture, cellOf } from './paint.ts';
import { styleSheet } from './style.ts';

/** As much of a finished job as a sheet reads. */
async function picture(color: string): Promise<Picture> {
  const create = { width: 128, height: 128, channels: 3 as const, background: color };
  const job = { input: { prompt: 'a rocket' }, output: { images: [{ width: 128 }] } } as GenerationJob;
  return { job, data: await sharp({ create }).png().toBuffer() };
}

test('the sheet has the styled picture below the one without', async () => {
  const base = [await picture('#ff0000'), await picture('#00ff00')];
  const styled = [await picture('#0000ff'), await picture('#000000')];
  const { data, info } = await sharp(await styleSheet(base, styled, 'ink@1'))
    .raw()
    .toBuffer({ resolveWithObject: true });
  const at = (x: number, y: number) => [
    ...data.subarray((y * info.width + x) * 3, (y * info.width + x) * 3 + 3),
  ];
  const column = 256 + 16;
  const row = info.height - 16 - (info.height - 16) / 2;
  expect(info.width).toBe(2 * column + 16);
  expect([at(20, 20), at(20 + column, 20)]).toEqual([
    [255, 0, 0],
    [0, 255, 0],
  ]);
  expect([at(20, 20 + row), at(20 + column, 20 + row)]).toEqual([
    [0, 0, 255],
    [0, 0, 0],
  ]);
});

test('small pictures are enlarged by a whole factor, large ones are not', () => {
  expect([64, 128, 200, 256, 1024].map(cellOf)).toEqual([256, 256, 200, 256, 1024]);
});
