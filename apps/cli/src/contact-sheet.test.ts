import sharp from 'sharp';
import { contactSheet, wrap } from './contact-sheet.ts';

const flat = (color: string) =>
  sharp({ create: { width: 8, height: 8, channels: 3, background: color } })
    .png()
    .toBuffer();

test('each picture is at its place in the grid, enlarged without blur, its caption below', async () => {
  const colors = ['#ff0000', '#00ff00', '#0000ff'];
  const pictures = await Promise.all(
    colors.map(async (color) => ({ data: await flat(color), caption: 'a & <b>', note: '1 s' })),
  );
  const { data, info } = await sharp(await contactSheet(pictures, { columns: 2, cell: 64 }))
    .raw()
    .toBuffer({ resolveWithObject: true });
  expect([info.width, info.height, info.channels]).toEqual([2 * 80 + 16, 2 * (64 + 62 + 16) + 16, 3]);
  const at = (x: number, y: number) => [
    ...data.subarray((y * info.width + x) * 3, (y * info.width + x) * 3 + 3),
  ];
  expect(at(16, 16)).toEqual([255, 0, 0]);
  expect(at(79, 79)).toEqual([255, 0, 0]);
  expect(at(96, 16)).toEqual([0, 255, 0]);
  expect(at(16, 16 + 64 + 62 + 16)).toEqual([0, 0, 255]);
  expect(at(80, 16)).toEqual([0xf6, 0xf5, 0xf2]);
});

test('captions break between words', () => {
  expect(wrap('two yellow stars on a dark blue background', 18)).toEqual([
    'two yellow stars',
    'on a dark blue',
    'background',
  ]);
  expect(wrap('  ', 10)).toEqual([]);
});
