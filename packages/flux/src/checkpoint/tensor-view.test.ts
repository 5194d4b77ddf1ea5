import { openSafetensors, writeSafetensors } from './safetensors.ts';
import { readFloat32, TensorView } from './tensor-view.ts';
import { entry, temporaryFolder } from './testing.ts';

const folder = temporaryFolder();

/** Rows [0, 1], [2, 3], [4, 5] in fp16 behind another tensor, with a scale. */
async function sampleView(scale: number): Promise<TensorView> {
  const path = folder.file('view.safetensors');
  const halves = Uint16Array.of(0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500);
  await writeSafetensors(path, [
    entry('first', 'F32', [3]),
    entry('x', 'F16', [3, 2], new Uint8Array(halves.buffer)),
  ]);
  const info = (await openSafetensors(path)).tensors.get('x')!;
  return new TensorView({ ...info, dtype: 'F16', stored: 'x', scale });
}

test('a view reads its values with the scale applied', async () => {
  expect(await readFloat32(await sampleView(1))).toEqual(Float32Array.of(0, 1, 2, 3, 4, 5));
  expect(await readFloat32(await sampleView(0.5))).toEqual(Float32Array.of(0, 0.5, 1, 1.5, 2, 2.5));
});

test('rows are the bytes of those rows, also rows of rows', async () => {
  const view = await sampleView(1);
  const rows = view.rows(1, 3);
  expect(rows).toMatchObject({ shape: [2, 2], offset: view.offset + 4, byteLength: 8, stored: 'x' });
  expect(await readFloat32(rows)).toEqual(Float32Array.of(2, 3, 4, 5));
  expect(await readFloat32(rows.rows(1, 2).named('y'))).toEqual(Float32Array.of(4, 5));
  expect(view.rows(3, 3)).toMatchObject({ shape: [0, 2], byteLength: 0 });
});

test.each([
  [-1, 2],
  [2, 1],
  [0, 4],
  [0.5, 1],
])('rows [%p, %p) of three are refused', async (begin, end) => {
  const view = await sampleView(1);
  expect(() => view.rows(begin, end)).toThrow(`x has 3 rows; [${begin}, ${end}) was asked for`);
});

test('another shape holds the same elements, never others', async () => {
  const view = await sampleView(1);
  expect(view.reshaped([2, 3, 1])).toMatchObject({ shape: [2, 3, 1], offset: view.offset, byteLength: 12 });
  expect(() => view.reshaped([5])).toThrow('x of shape [3, 2] cannot become [5]');
});
