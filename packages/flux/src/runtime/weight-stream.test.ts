import { truncate } from 'node:fs/promises';
import { openSafetensors, type TensorEntry, writeSafetensors } from '../checkpoint/safetensors.ts';
import { entry, rejection, temporaryFolder } from '../checkpoint/testing.ts';
import type { LocatedTensor } from '../graph/weights.ts';
import { WeightStream, type WeightUnit } from './weight-stream.ts';

const work = temporaryFolder();

const filled = (value: number, length: number): Uint8Array => new Uint8Array(length).fill(value);

async function write(name: string, tensors: TensorEntry[]): Promise<Map<string, LocatedTensor>> {
  const file = work.file(name);
  await writeSafetensors(file, tensors);
  return new Map((await openSafetensors(file)).tensors);
}

/** Units of one weight each, filled with the number of the unit, from 1. */
async function numbered(name: string, count: number, length: number): Promise<WeightUnit[]> {
  const names = Array.from({ length: count }, (_, i) => String(i + 1));
  const located = await write(
    name,
    names.map((value) => entry(value, 'F8_E4M3', [length], filled(Number(value), length))),
  );
  return names.map((value) => [{ name: 'w', located: located.get(value)! }]);
}

test('every weight in the type and shape that a graph takes, whatever lies between them', async () => {
  const half = new Uint8Array(new Uint16Array([0x3c00, 0xc000, 0x3800]).buffer);
  const located = await write('types.safetensors', [
    entry('odd', 'F8_E4M3', [3], Uint8Array.of(1, 2, 3)),
    entry('single', 'F32', [2, 1], new Uint8Array(Float32Array.of(0.1, -7).buffer)),
    entry('half', 'F16', [3], half),
    entry('brain', 'BF16', [1, 3], half),
    entry('unused', 'F8_E4M3', [100_000]),
    entry('zz', 'F8_E4M3', [2], Uint8Array.of(9, 8)),
  ]);
  const names = ['zz', 'half', 'odd', 'single', 'brain'];
  const unit = names.map((name) => ({ name, located: located.get(name)! }));
  unit.push({ name: 'scaled', located: { ...located.get('odd')!, scale: 0.25 } });
  const stream = new WeightStream([unit]);
  const { value: feeds } = await stream.pass().next();
  expect(feeds).toEqual({
    'weight:single': { data: Float32Array.of(0.1, -7), dims: [2, 1] },
    'weight:half': { data: Float16Array.of(1, -2, 0.5), dims: [3] },
    'weight:brain': { data: Uint16Array.of(0x3c00, 0xc000, 0x3800), dims: [1, 3] },
    'weight:odd': { data: Uint8Array.of(1, 2, 3), dims: [3] },
    'weight:zz': { data: Uint8Array.of(9, 8), dims: [2] },
    'weight:scaled': { data: Uint8Array.of(1, 2, 3), dims: [3] },
    'scale:scaled': { data: Float32Array.of(0.25), dims: [] },
  });
  await stream.close();
});

test('elements that do not lie on their own size in the file are read all the same', async () => {
  const { file, offset } = (
    await write('shifted.safetensors', [entry('bytes', 'F8_E4M3', [9], filled(7, 9))])
  ).get('bytes')!;
  const at = (by: number, dtype: string, byteLength: number): LocatedTensor => ({
    file,
    offset: offset + by,
    byteLength,
    dtype,
    shape: [1],
  });
  const unit = [
    { name: 'a', located: at(0, 'F8_E4M3', 1) },
    { name: 'b', located: at(1, 'F32', 4) },
    { name: 'c', located: at(5, 'BF16', 2) },
  ];
  const stream = new WeightStream([unit]);
  const { value: feeds } = await stream.pass().next();
  expect(feeds).toMatchObject({
    'weight:b': { data: new Float32Array(filled(7, 4).buffer) },
    'weight:c': { data: Uint16Array.of(0x0707) },
  });
  await stream.close();
});

test('the unit after the next arrives while the thread is blocked, and two units are all the memory', async () => {
  const length = 20 * 1024 * 1024;
  const stream = new WeightStream(await numbered('large.safetensors', 4, length));
  const buffers = new Set<ArrayBufferLike>();
  const pass = stream.pass();
  const data = async (): Promise<Uint8Array> => {
    const { data: bytes } = ((await pass.next()).value as Record<string, { data: Uint8Array }>)['weight:w']!;
    buffers.add(bytes.buffer);
    return bytes;
  };
  const first = await data();
  expect([first[0], first[length - 1]]).toEqual([1, 1]);
  expect((await data())[0]).toBe(2);
  // As a session would; `first` is where the third unit goes.
  const clock = new Int32Array(new SharedArrayBuffer(4));
  for (let tries = 0; tries < 1000 && !isFilled(first, 3); tries++) Atomics.wait(clock, 0, 0, 10);
  expect(isFilled(first, 3)).toBe(true);
  expect((await data())[0]).toBe(3);
  expect((await data())[length - 1]).toBe(4);
  expect((await pass.next()).done).toBe(true);
  for await (const feeds of stream.pass()) buffers.add(feeds['weight:w']!.data.buffer);
  expect(buffers.size).toBe(2);
  await stream.close();
});

test('a pass that is given up does not write into what the next one reads', async () => {
  const stream = new WeightStream(await numbered('given-up.safetensors', 3, 1_000_000));
  for await (const feeds of stream.pass()) {
    expect(feeds['weight:w']!.data[0]).toBe(1);
    break;
  }
  let expected = 1;
  for await (const feeds of stream.pass()) {
    const value = expected++;
    expect(isFilled(feeds['weight:w']!.data as Uint8Array, value)).toBe(true);
  }
  expect(expected).toBe(4);
  await stream.close();
});

test('a unit that cannot be read is an error when its turn comes, and only then', async () => {
  const units = await numbered('cut.safetensors', 2, 100_000);
  const second = units[1]![0]!.located;
  await truncate(second.file, second.offset + 10);
  const stream = new WeightStream(units);
  const pass = stream.pass();
  expect((await pass.next()).done).toBe(false);
  await new Promise((resolve) => setTimeout(resolve, 50));
  const error = await rejection(pass.next());
  expect({ code: error.code, names: error.message.includes(second.file) }).toEqual({
    code: 'checkpoint_invalid',
    names: true,
  });
  await stream.close();
});

test('a file that is not there is an error, and nothing stays open', async () => {
  const [there] = await numbered('there.safetensors', 1, 10);
  const gone = { ...there![0]!.located, file: work.file('gone.safetensors') };
  const stream = new WeightStream([[...there!, { name: 'gone', located: gone }]]);
  expect((await rejection(stream.pass().next())).code).toBe('checkpoint_missing');
  await stream.close();
});

function isFilled(bytes: Uint8Array, value: number): boolean {
  return bytes[0] === value && bytes.every((byte) => byte === value);
}
