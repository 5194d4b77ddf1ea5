import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { decodeFloat32, encodeFloat32 } from './dtypes.ts';
import { prepareWeights, type PreparedTensor, type PrepareOptions } from './prepare.ts';
import { openSafetensors, readTensor, writeSafetensors, type TensorEntry } from './safetensors.ts';
import { readFloat32, TensorView } from './tensor-view.ts';
import { entry, FIXTURES, rejection, temporaryFolder } from './testing.ts';
import { openWeights } from './weights.ts';

const folder = temporaryFolder();
const SCALED = join(FIXTURES, 'tiny-dev/variants/fp8_scaled.safetensors');
const cacheDir = () => folder.file('cache');

beforeEach(() => rm(cacheDir(), { recursive: true, force: true }));

async function viewsOf(path: string, scale = 1): Promise<TensorView[]> {
  const { tensors } = await openSafetensors(path);
  return [...tensors.values()].map(
    (info) => new TensorView({ ...info, dtype: info.dtype as TensorView['dtype'], stored: info.name, scale }),
  );
}

async function scaledViews(): Promise<TensorView[]> {
  const weights = await openWeights(SCALED, 'transformer');
  return weights.names().map((name) => weights.get(name));
}

const values = (tensor: PreparedTensor) => readFloat32(new TensorView({ ...tensor, stored: tensor.name }));

/** Bytes that are different everywhere and finite in every float dtype. */
function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8)) % 0x70);
}

async function writeSource(name: string, entries: readonly TensorEntry[]): Promise<string> {
  await writeSafetensors(folder.file(name), entries);
  return folder.file(name);
}

/** A source of a matrix and a vector, small enough for tests that only watch the cache. */
const writeSmall = () =>
  writeSource('small.safetensors', [
    entry('w', 'BF16', [4, 8], pattern(64)),
    entry('b', 'F16', [5], pattern(10)),
  ]);

async function prepareSmall(
  options: Partial<PrepareOptions> = {},
): Promise<ReadonlyMap<string, PreparedTensor>> {
  const views = options.views ?? (await viewsOf(folder.file('small.safetensors')));
  return prepareWeights({ target: 'F32', cacheDir: cacheDir(), ...options, views });
}

describe('F32', () => {
  test('every tensor has its values, scale applied, and can be mapped', async () => {
    const views = await scaledViews();
    const prepared = await prepareWeights({ views, target: 'F32', cacheDir: cacheDir() });
    expect(prepared.size).toBe(views.length);
    for (const view of views) {
      const tensor = prepared.get(view.name)!;
      expect(tensor).toMatchObject({ dtype: 'F32', shape: view.shape, scale: 1 });
      expect(tensor.offset % 4096).toBe(0);
      expect(await values(tensor)).toEqual(await readFloat32(view));
    }
    const ranges = [...prepared.values()].sort((a, b) => a.offset - b.offset);
    for (const [i, { offset }] of ranges.entries()) {
      const before = ranges[i - 1];
      expect(offset).toBeGreaterThanOrEqual(before ? before.offset + before.byteLength : 0);
    }
  });

  test('tensors larger than a batch, empty ones and gaps between views keep their values', async () => {
    const big = await writeSource('big.safetensors', [
      entry('a', 'F8_E4M3', [3000, 3001], pattern(3000 * 3001)),
      entry('b', 'F16', [1500, 1501], pattern(2 * 1500 * 1501)),
      entry('c', 'BF16', [7], pattern(14)),
      entry('d', 'F32', [0, 3]),
      entry('e', 'F64', [3], pattern(24)),
      entry('skipped', 'F32', [3000, 1000]),
    ]);
    const views = (await viewsOf(big)).filter(({ name }) => name !== 'skipped');
    const a = views.find(({ name }) => name === 'a')!;
    views.push(a.rows(2000, 3000).named('a.tail'));
    const seen: { done: number; total: number }[] = [];
    const onProgress = (progress: { done: number; total: number }) => void seen.push(progress);
    const prepared = await prepareWeights({ views, target: 'F32', cacheDir: cacheDir(), onProgress });
    for (const view of views) {
      const [found, expected] = [await values(prepared.get(view.name)!), await readFloat32(view)];
      // Jest's comparison of millions of elements takes seconds.
      expect(Buffer.compare(Buffer.from(found.buffer), Buffer.from(expected.buffer))).toBe(0);
    }
    const total = views.reduce((sum, { shape }) => sum + 4 * shape.reduce((x, y) => x * y, 1), 0);
    expect(seen.length).toBeGreaterThan(3);
    expect(seen.map(({ done }) => done)).toEqual(seen.map(({ done }) => done).sort((x, y) => x - y));
    expect(seen.at(-1)).toEqual({ done: total, total });
  });
});

describe('F8_E4M3', () => {
  test('wide matrices are rounded as torch casts, all else stays as it is', async () => {
    const source = await writeSource('wide.safetensors', [
      entry('bf16', 'BF16', [16, 40], pattern(1280)),
      entry('f16', 'F16', [16, 40], pattern(1280)),
      entry(
        'f32',
        'F32',
        [16, 40],
        new Uint8Array(Float32Array.from({ length: 640 }, (_, i) => i - 320.3).buffer),
      ),
      entry('vector', 'BF16', [40], pattern(80)),
      entry('conv', 'F16', [2, 2, 3, 3], pattern(72)),
      entry('fp8', 'F8_E4M3', [16, 40], pattern(640)),
      entry('kept', 'BF16', [16, 40], pattern(1280)),
    ]);
    const views = await viewsOf(source);
    const quantize = (view: TensorView) => view.name !== 'kept';
    const prepared = await prepareWeights({ views, target: 'F8_E4M3', cacheDir: cacheDir(), quantize });
    for (const view of views) {
      const tensor = prepared.get(view.name)!;
      const isRounded = ['bf16', 'f16', 'f32'].includes(view.name);
      expect(tensor.dtype).toBe(isRounded ? 'F8_E4M3' : view.dtype);
      const stored = await readTensor(view);
      const expected = isRounded ? encodeFloat32('F8_E4M3', decodeFloat32(view.dtype, stored)) : stored;
      expect(await readTensor(tensor)).toEqual(expected);
    }
  });

  test('scaled fp8 keeps its bytes and its scale; the scale of a wide matrix goes into its bytes', async () => {
    const views = await scaledViews();
    const prepared = await prepareWeights({ views, target: 'F8_E4M3', cacheDir: cacheDir() });
    const name = 'transformer_blocks.0.attn.to_k.weight';
    const view = views.find((candidate) => candidate.name === name)!;
    expect(view.scale).not.toBe(1);
    expect(prepared.get(name)!.scale).toBe(view.scale);
    expect(await readTensor(prepared.get(name)!)).toEqual(await readTensor(view));
    await writeSmall();
    const small = await prepareSmall({
      views: await viewsOf(folder.file('small.safetensors'), 3),
      target: 'F8_E4M3',
    });
    const [wide] = (await viewsOf(folder.file('small.safetensors'), 3)).filter(
      (candidate) => candidate.name === 'w',
    );
    expect(small.get('w')!.scale).toBe(1);
    expect(small.get('b')!.scale).toBe(3);
    expect(await readTensor(small.get('w')!)).toEqual(encodeFloat32('F8_E4M3', await readFloat32(wide!)));
  });
});

describe('cache', () => {
  beforeEach(writeSmall);

  test('what is there is used again, by any process', async () => {
    const first = await prepareSmall();
    const { ino } = await stat(first.get('w')!.file);
    const onProgress = jest.fn();
    expect(await prepareSmall({ onProgress })).toEqual(first);
    expect((await stat(first.get('w')!.file)).ino).toBe(ino);
    expect(onProgress).not.toHaveBeenCalled();
    expect(await readdir(cacheDir())).toHaveLength(2);
  });

  test('other bytes, another time of change, other views, another target: another file', async () => {
    const files = new Set<string>();
    const add = async (options: Partial<PrepareOptions> = {}) =>
      files.add((await prepareSmall(options)).get('w')!.file);
    await add();
    await add({ target: 'F8_E4M3' });
    await add({ views: await viewsOf(folder.file('small.safetensors'), 2) });
    await add({
      views: (await viewsOf(folder.file('small.safetensors'))).filter(({ name }) => name === 'w'),
    });
    await utimes(folder.file('small.safetensors'), 1000, 1000);
    await add();
    await writeSource('small.safetensors', [entry('w', 'BF16', [4, 8], pattern(64)), entry('b', 'F16', [6])]);
    await add();
    expect(files.size).toBe(6);
  });

  test.each<[string, (data: string, index: string) => Promise<unknown>]>([
    ['data cut short', (data) => truncate(data, 4097)],
    ['no data', (data) => rm(data)],
    ['no index', (_, index) => rm(index)],
    ['an index cut short', (_, index) => truncate(index, 20)],
    ['a foreign index', (_, index) => writeFile(index, '{}')],
  ])('%s is made anew', async (_, damage) => {
    const { file } = (await prepareSmall()).get('w')!;
    await damage(file, file.replace(/weights$/, 'json'));
    const onProgress = jest.fn();
    const prepared = await prepareSmall({ onProgress });
    expect(onProgress).toHaveBeenCalled();
    for (const view of await viewsOf(folder.file('small.safetensors'))) {
      expect(await values(prepared.get(view.name)!)).toEqual(await readFloat32(view));
    }
    expect(await readdir(cacheDir())).toHaveLength(2);
  });

  test('temporary files are removed once their writer is long gone, and no sooner', async () => {
    await mkdir(cacheDir());
    await writeFile(join(cacheDir(), 'dead.weights.1.tmp'), 'x');
    await utimes(join(cacheDir(), 'dead.weights.1.tmp'), 1000, 1000);
    await writeFile(join(cacheDir(), 'alive.weights.2.tmp'), 'x');
    await prepareSmall();
    const names = (await readdir(cacheDir())).filter((name) => name.endsWith('.tmp'));
    expect(names).toEqual(['alive.weights.2.tmp']);
  });

  test('a cache that cannot be written, a source that cannot be read, a name that comes twice', async () => {
    await writeFile(cacheDir(), 'a file');
    const blocked = await rejection(prepareSmall());
    expect(blocked.code).toBe('engine_failed');
    expect(blocked.message).toContain('bytes of weights cannot be written');
    await rm(cacheDir());
    const views = await viewsOf(folder.file('small.safetensors'));
    await expect(prepareSmall({ views: [...views, ...views] })).rejects.toThrow('the same name');
    await truncate(folder.file('small.safetensors'), (await stat(folder.file('small.safetensors'))).size - 1);
    const cut = await rejection(prepareSmall({ views }));
    expect(cut.code).toBe('checkpoint_invalid');
    expect(await readdir(cacheDir())).toEqual([]);
  });
});

describe('processes', () => {
  /** Prepares a file in a process of its own: where the data lies, and the largest memory that it held. */
  async function prepareElsewhere(
    path: string,
    target: string,
  ): Promise<{ file: string; maxRssMiB: number }> {
    const module = (name: string) => JSON.stringify(join(import.meta.dirname, name));
    const script = `
      const { openSafetensors } = await import(${module('safetensors.ts')});
      const { prepareWeights } = await import(${module('prepare.ts')});
      const { TensorView } = await import(${module('tensor-view.ts')});
      const { tensors } = await openSafetensors(${JSON.stringify(path)});
      const views = [...tensors.values()].map((info) => new TensorView({ ...info, stored: info.name, scale: 1 }));
      const prepared = await prepareWeights({ views, target: '${target}', cacheDir: ${JSON.stringify(cacheDir())} });
      const [{ file }] = prepared.values();
      console.log(JSON.stringify({ file, maxRssMiB: process.resourceUsage().maxRSS / 1024 }));`;
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script]);
    return JSON.parse(stdout) as { file: string; maxRssMiB: number };
  }

  test('several that prepare the same thing at once all get it whole', async () => {
    const source = await writeSource('shared.safetensors', [
      entry('a', 'F8_E4M3', [1000, 9001], pattern(9_001_000)),
      entry('b', 'BF16', [33], pattern(66)),
    ]);
    const results = await Promise.all([0, 1, 2].map(() => prepareElsewhere(source, 'F32')));
    const [file] = new Set(results.map((result) => result.file));
    const digest = createHash('sha256')
      .update(await readFile(file!))
      .digest('hex');
    expect(new Set(results.map((result) => result.file)).size).toBe(1);
    expect(await readdir(cacheDir())).toHaveLength(2);
    const alone = await prepareWeights({
      views: await viewsOf(source),
      target: 'F32',
      cacheDir: folder.file('alone'),
    });
    const reference = await readFile(alone.get('a')!.file);
    expect(digest).toBe(createHash('sha256').update(reference).digest('hex'));
  });

  test('memory stays far below the size of the model', async () => {
    const rows = 64 * 1024;
    const source = folder.file('wide-model.safetensors');
    async function* zeros() {
      for (let i = 0; i < 384; i++) yield new Uint8Array(1024 * 1024);
    }
    await writeSafetensors(source, [{ name: 'w', dtype: 'BF16', shape: [rows, 3 * 1024], data: zeros() }]);
    const { maxRssMiB } = await prepareElsewhere(source, 'F8_E4M3');
    // The source has 384 MiB and the result 192 MiB; a bare Node process takes about 60.
    expect(maxRssMiB).toBeLessThan(250);
  });
});
