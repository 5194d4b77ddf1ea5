import { execFileSync } from 'node:child_process';
import { open, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { DTYPE_BYTES, type Dtype } from './dtypes.ts';
import { openSafetensors, readChunks, readTensor, writeSafetensors } from './safetensors.ts';
import { entry, rejection, temporaryFolder } from './testing.ts';

const folder = temporaryFolder();

/** A file with the given JSON part, which may be text that is no JSON, and `dataBytes` zeros after it. */
async function writeRaw(
  name: string,
  header: unknown,
  dataBytes = 0,
  claimedLength?: bigint,
): Promise<string> {
  const json = Buffer.isBuffer(header)
    ? header
    : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(claimedLength ?? BigInt(json.byteLength));
  await writeFile(folder.file(name), Buffer.concat([length, json, Buffer.alloc(dataBytes)]));
  return folder.file(name);
}

const tensor = (dtype: string, shape: unknown, offsets: unknown) => ({ dtype, shape, data_offsets: offsets });

/** Gives the pieces, then fails if there is an error to fail with. */
async function* stream(pieces: readonly Uint8Array[], error?: Error): AsyncGenerator<Uint8Array, void, void> {
  yield* pieces;
  if (error) throw error;
}

describe('round trip', () => {
  test('every dtype comes back with its shape and bytes', async () => {
    const path = folder.file('all.safetensors');
    const entries = (Object.keys(DTYPE_BYTES) as Dtype[]).map((dtype, i) =>
      entry(
        `tensor.${dtype}`,
        dtype,
        [3, 2],
        Uint8Array.from({ length: 6 * DTYPE_BYTES[dtype] }, (_, j) => i + j),
      ),
    );
    await writeSafetensors(path, [...entries, entry('scalar', 'F32', []), entry('empty', 'F16', [0, 5])], {
      format: 'pt',
      note: 'ü "quoted"',
    });
    const file = await openSafetensors(path);
    expect(file.metadata).toEqual({ format: 'pt', note: 'ü "quoted"' });
    expect(file.tensors.size).toBe(entries.length + 2);
    for (const { name, dtype, shape, data } of entries) {
      const info = file.tensors.get(name)!;
      expect(info).toMatchObject({ dtype, shape, file: path });
      expect(await readTensor(info)).toEqual(data);
    }
    expect(file.tensors.get('scalar')).toMatchObject({ shape: [], byteLength: 4 });
    expect(file.tensors.get('empty')).toMatchObject({ shape: [0, 5], byteLength: 0 });
  });

  test('the writer gives the bytes of the reference implementation', async () => {
    // safetensors.torch.save of safetensors 0.8.0 on the same tensors.
    const reference =
      'iAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJwdCJ9LCJ6Ijp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOltdLCJkYXRhX29mZnNldHMi' +
      'OlswLDhdfSwiYi53ZWlnaHQiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzNdLCJkYXRhX29mZnNldHMiOls4LDIwXX0sIsOpXCJcXCI6eyJkdHlw' +
      'ZSI6IkYzMiIsInNoYXBlIjpbMCwyXSwiZGF0YV9vZmZzZXRzIjpbMjAsMjBdfSwiYS53ZWlnaHQiOnsiZHR5cGUiOiJCRjE2Iiwic2hhcGUiOlsy' +
      'XSwiZGF0YV9vZmZzZXRzIjpbMjAsMjRdfSwiYTgiOnsiZHR5cGUiOiJGOF9FNE0zIiwic2hhcGUiOlsxXSwiZGF0YV9vZmZzZXRzIjpbMjQsMjVd' +
      'fSwiMTAiOnsiZHR5cGUiOiJCT09MIiwic2hhcGUiOlsxXSwiZGF0YV9vZmZzZXRzIjpbMjUsMjZdfX0gICAgIAcAAAAAAAAAAAAAAAAAgD8AAABA' +
      'gD8AQDwB';
    const path = folder.file('reference.safetensors');
    await writeSafetensors(
      path,
      [
        entry('10', 'BOOL', [1], Uint8Array.of(1)),
        entry('a8', 'F8_E4M3', [1], Uint8Array.of(0x3c)),
        entry('a.weight', 'BF16', [2], Uint8Array.of(0x80, 0x3f, 0x00, 0x40)),
        entry('b.weight', 'F32', [3], new Uint8Array(Float32Array.of(0, 1, 2).buffer)),
        entry('z', 'I64', [], new Uint8Array(BigInt64Array.of(7n).buffer)),
        entry('é"\\', 'F32', [0, 2]),
      ],
      { format: 'pt' },
    );
    expect((await readFile(path)).toString('base64')).toBe(reference);
    expect([...(await openSafetensors(path)).tensors.keys()]).toEqual(
      expect.arrayContaining(['é"\\', '10', 'a.weight']),
    );
  });
});

describe('writer', () => {
  test('a stream that fails or ends early leaves the old file, and nothing else', async () => {
    const path = folder.file('kept.safetensors');
    await writeSafetensors(path, [entry('x', 'U8', [2], Uint8Array.of(1, 2))]);
    const before = await readFile(path);
    const write = (data: AsyncIterable<Uint8Array>) =>
      writeSafetensors(path, [{ name: 'x', dtype: 'U8', shape: [2], data }]);
    await expect(write(stream([Uint8Array.of(9)]))).rejects.toThrow('tensor x gave 1 bytes; 2 were expected');
    await expect(write(stream([Uint8Array.of(9)], new Error('the source went away')))).rejects.toThrow(
      'the source went away',
    );
    expect(await readFile(path)).toEqual(before);
    expect((await readdir(folder.path)).filter((name) => name.includes('kept'))).toEqual([
      'kept.safetensors',
    ]);
  });

  test('streams are written piece by piece, and a name is used once', async () => {
    const path = folder.file('stream.safetensors');
    await writeSafetensors(path, [
      { name: 'x', dtype: 'U8', shape: [4], data: stream([Uint8Array.of(1, 2, 3), Uint8Array.of(4)]) },
    ]);
    const { tensors } = await openSafetensors(path);
    expect(await readTensor(tensors.get('x')!)).toEqual(Uint8Array.of(1, 2, 3, 4));
    await expect(writeSafetensors(path, [entry('x', 'U8', [1]), entry('x', 'U8', [1])])).rejects.toThrow(
      'tensor name x is taken',
    );
  });
});

describe('large files', () => {
  test('tensors beyond 4 GB are found and read', async () => {
    const path = folder.file('large.safetensors');
    const gib = 2 ** 30;
    const header = {
      big: tensor('F32', [5, 2 ** 28], [0, 5 * gib]),
      last: tensor('F32', [2], [5 * gib, 5 * gib + 8]),
    };
    await writeRaw('large.safetensors', header);
    const begin = 8 + JSON.stringify(header).length;
    await truncate(path, begin + 5 * gib + 8);
    const handle = await open(path, 'r+');
    await handle.write(new Uint8Array(Float32Array.of(1.5, -2.5).buffer), 0, 8, begin + 5 * gib);
    await handle.close();
    const { tensors, size } = await openSafetensors(path);
    expect(size).toBe(begin + 5 * gib + 8);
    const info = tensors.get('last')!;
    expect(info.offset).toBe(begin + 5 * gib);
    expect(new Float32Array((await readTensor(info)).buffer)).toEqual(Float32Array.of(1.5, -2.5));
  });
});

describe('readChunks', () => {
  test('pieces join to the tensor, hold whole elements and respect the limit', async () => {
    const path = folder.file('chunks.safetensors');
    const data = Uint8Array.from({ length: 4 * 25 }, (_, i) => i);
    await writeSafetensors(path, [entry('x', 'F32', [25], data), entry('tail', 'U8', [1])]);
    const info = (await openSafetensors(path)).tensors.get('x')!;
    const sizes: number[] = [];
    const joined: number[] = [];
    for await (const chunk of readChunks(info, 30)) {
      sizes.push(chunk.byteLength);
      joined.push(...chunk);
    }
    expect(sizes).toEqual([28, 28, 28, 16]);
    expect(joined).toEqual([...data]);
    await expect(readChunks(info, 3).next()).rejects.toThrow('a chunk of 3 bytes holds no F32 element');
  });

  test('a file that was cut after its header was read is reported', async () => {
    const path = folder.file('cut.safetensors');
    await writeSafetensors(path, [entry('x', 'U8', [100])]);
    const info = (await openSafetensors(path)).tensors.get('x')!;
    await truncate(path, info.offset + 60);
    const error = await rejection(readTensor(info));
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toBe(`${path}: ends at byte ${info.offset + 60}; 40 more were expected`);
  });
});

describe('refused files', () => {
  const one = tensor('F32', [2], [0, 8]);
  const cases: [string, unknown, number, string][] = [
    ['JSON that ends early', '{"x":', 0, 'header is not JSON'],
    ['no object', '[1]', 0, 'header does not start with "{"'],
    ['a space before the object', ' {}', 0, 'header does not start with "{"'],
    ['a byte order mark', Buffer.from('\uFEFF{}'), 0, 'header does not start with "{"'],
    ['broken UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]), 0, 'header is not UTF-8'],
    [
      'a repeated tensor',
      `{"x":${JSON.stringify(one)},"x":${JSON.stringify(one)}}`,
      8,
      `has the key 'x' twice`,
    ],
    [
      'a repeated tensor, escaped',
      `{"x":${JSON.stringify(one)},"\\u0078":${JSON.stringify(one)}}`,
      8,
      `'x' twice`,
    ],
    [
      'a repeated field',
      '{"x":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
      8,
      `'dtype' twice`,
    ],
    ['metadata that is no object', { __metadata__: 'pt' }, 0, `__metadata__ is 'pt'; an object of strings`],
    ['metadata of numbers', { __metadata__: { rank: 4 } }, 0, `__metadata__ has 4 under 'rank'`],
    ['a tensor that is no object', { x: 3 }, 0, `tensor 'x' has the entry 3`],
    [
      'dtype of another type',
      { x: tensor(7 as never, [2], [0, 8]) },
      8,
      `tensor 'x' has dtype 7; expected a string`,
    ],
    ['a negative size', { x: tensor('F32', [-2], [0, 8]) }, 8, `tensor 'x' has shape [ -2 ]`],
    ['a fractional size', { x: tensor('F32', [0.5, 4], [0, 8]) }, 8, `tensor 'x' has shape [ 0.5, 4 ]`],
    [
      'a size beyond 2^53',
      { x: tensor('F32', [2 ** 60], [0, 8]) },
      8,
      `tensor 'x' has shape [ 1152921504606847000 ]`,
    ],
    [
      'a product that overflows',
      { x: tensor('F32', [2 ** 40, 2 ** 40], [0, 8]) },
      8,
      'fewer than 2^53 bytes',
    ],
    [
      'a product that overflows to 0',
      { x: tensor('F32', [2 ** 40, 2 ** 40, 0], [0, 0]) },
      0,
      'fewer than 2^53 bytes',
    ],
    ['a nested shape', { x: tensor('F32', [[2]], [0, 8]) }, 8, `tensor 'x' has shape [ [ 2 ] ]`],
    ['no shape', { x: { dtype: 'F32', data_offsets: [0, 8] } }, 8, `tensor 'x' has shape undefined`],
    ['three offsets', { x: tensor('F32', [2], [0, 8, 9]) }, 8, 'two non-negative integers'],
    ['offsets beyond the file', { x: tensor('F32', [2], [0, 8]) }, 7, 'begin <= end <= 7'],
    ['offsets in reverse', { x: tensor('F32', [2], [8, 0]) }, 8, 'begin <= end <= 8'],
    [
      'offsets of another size',
      { x: tensor('F32', [3], [0, 8]) },
      8,
      'expected 12 bytes, the size of F32 [3]',
    ],
    ['a hole at the start', { x: tensor('F32', [2], [4, 12]) }, 12, 'leaves a hole after the header'],
    [
      'a hole between tensors',
      { a: one, b: tensor('U8', [1], [9, 10]) },
      10,
      `tensor 'b' leaves a hole after tensor 'a'`,
    ],
    ['an overlap', { a: one, b: tensor('U8', [4], [6, 10]) }, 10, `tensor 'b' overlaps tensor 'a'`],
    ['two tensors in the same bytes', { a: one, b: one }, 8, `tensor 'b' overlaps tensor 'a'`],
    ['bytes left over', { x: one }, 9, 'its header accounts for'],
    ['bytes without tensors', {}, 1, 'its header accounts for'],
  ];
  test.each(cases)('%s', async (_, header, dataBytes, message) => {
    const path = await writeRaw('refused.safetensors', header, dataBytes);
    const error = await rejection(openSafetensors(path));
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toContain(path);
    expect(error.message).toContain(message);
  });

  test('an unknown dtype is named with the known ones', async () => {
    const path = await writeRaw('dtype.safetensors', { x: tensor('F4', [2], [0, 1]) }, 1);
    const error = await rejection(openSafetensors(path));
    expect(error.code).toBe('checkpoint_unsupported');
    expect(error.message).toContain(`tensor 'x' has dtype 'F4'; known are BOOL, U8,`);
  });

  test.each([
    [0n, 2, 'header does not start with "{"'],
    [3n, 0, 'claims a header of 3 bytes; at most 2 are possible'],
    [2n ** 63n, 0, 'claims a header of 9223372036854775808 bytes'],
    [2n ** 64n - 1n, 0, 'claims a header of 18446744073709551615 bytes'],
  ])('a header length of %p', async (length, dataBytes, message) => {
    const path = await writeRaw('length.safetensors', '{}', dataBytes, length);
    expect((await rejection(openSafetensors(path))).message).toContain(message);
  });

  test('a header beyond 100 MB, though the file is large enough', async () => {
    const path = await writeRaw('header.safetensors', '{}', 0, 100_000_001n);
    await truncate(path, 200_000_000);
    expect((await rejection(openSafetensors(path))).message).toContain('at most 100000000 are possible');
  });

  test('a header nested beyond all measure', async () => {
    const depth = 200_000;
    const path = await writeRaw('deep.safetensors', `{"x":${'['.repeat(depth)}${']'.repeat(depth)}}`);
    expect((await rejection(openSafetensors(path))).code).toBe('checkpoint_invalid');
  });

  test('what is no file: nothing, a folder, a pipe, seven bytes', async () => {
    expect((await rejection(openSafetensors(folder.file('absent')))).code).toBe('checkpoint_missing');
    expect((await rejection(openSafetensors(folder.path))).message).toContain('is not a regular file');
    execFileSync('mkfifo', [folder.file('pipe')]);
    expect((await rejection(openSafetensors(folder.file('pipe')))).message).toContain(
      'is not a regular file',
    );
    await writeFile(folder.file('seven'), Buffer.alloc(7));
    expect((await rejection(openSafetensors(folder.file('seven')))).message).toContain('has 7 bytes');
  });
});
