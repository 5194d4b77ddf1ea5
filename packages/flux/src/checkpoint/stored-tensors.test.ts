import { mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeSafetensors } from './safetensors.ts';
import { openStoredTensors } from './stored-tensors.ts';
import { entry, rejection, temporaryFolder } from './testing.ts';

const folder = temporaryFolder();
const INDEX = 'model.safetensors.index.json';

/** A sharded checkpoint with tensors a and b in one shard and c in another. */
async function writeShards(name: string, map: Record<string, unknown> = {}): Promise<string> {
  const path = folder.file(name);
  await mkdir(path);
  await writeSafetensors(join(path, 'one.safetensors'), [entry('a', 'F32', [1]), entry('b', 'F32', [2])]);
  await writeSafetensors(join(path, 'two.safetensors'), [entry('c', 'F32', [3])]);
  const weights = { a: 'one.safetensors', b: 'one.safetensors', c: 'two.safetensors', ...map };
  await writeFile(join(path, INDEX), JSON.stringify({ metadata: { total_size: 24 }, weight_map: weights }));
  return path;
}

test('the shards of a folder are one checkpoint', async () => {
  const path = await writeShards('shards');
  const { entries } = await openStoredTensors(path);
  expect([...entries.keys()].sort()).toEqual(['a', 'b', 'c']);
  expect(entries.get('c')!.info).toMatchObject({ file: join(path, 'two.safetensors'), shape: [3] });
});

test('an absent shard, and a tensor that is not in its shard, are missing', async () => {
  const path = await writeShards('incomplete', { b: 'two.safetensors' });
  const tensor = await rejection(openStoredTensors(path));
  expect(tensor.code).toBe('checkpoint_missing');
  expect(tensor.message).toBe(
    `${join(path, 'two.safetensors')}: has no tensor 'b', which ${INDEX} puts there`,
  );
  await rm(join(path, 'one.safetensors'));
  const shard = await rejection(openStoredTensors(path));
  expect(shard.code).toBe('checkpoint_missing');
  expect(shard.message).toContain(join(path, 'one.safetensors'));
});

test.each(['../shards/one.safetensors', '/etc/passwd', '..', 'sub/one.safetensors', 'index.json', 7])(
  'an index that names %p is refused',
  async (file) => {
    const path = await writeShards(`outside-${String(file).replaceAll(/\W/g, '')}`, { a: file });
    const error = await rejection(openStoredTensors(path));
    expect(error.code).toBe('checkpoint_invalid');
    expect(error.message).toContain('a *.safetensors file of the same folder was expected');
  },
);

test('an index without a weight map, and one with a repeated key, are refused', async () => {
  const path = await writeShards('index');
  await writeFile(join(path, INDEX), '{"weight_map": []}');
  expect((await rejection(openStoredTensors(path))).message).toContain(
    'weight_map is []; an object was expected',
  );
  await writeFile(join(path, INDEX), '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}');
  expect((await rejection(openStoredTensors(path))).message).toContain(`index has the key 'a' twice`);
});

test('a folder with one file is that file, linked or not; the standard name wins among several', async () => {
  const path = folder.file('single');
  await mkdir(path);
  await writeSafetensors(folder.file('blob'), [entry('x', 'F32', [1])]);
  await symlink(folder.file('blob'), join(path, 'any.safetensors'));
  expect([...(await openStoredTensors(path)).entries.keys()]).toEqual(['x']);
  await writeSafetensors(join(path, 'other.safetensors'), [entry('y', 'F32', [1])]);
  const error = await rejection(openStoredTensors(path));
  expect(error.message).toContain(
    'has 2 *.safetensors files and no index, expected one: any.safetensors, other.safetensors',
  );
  await writeSafetensors(join(path, 'model.safetensors'), [entry('z', 'F32', [1])]);
  expect([...(await openStoredTensors(path)).entries.keys()]).toEqual(['z']);
});

test('an empty folder, and no folder at all, are missing', async () => {
  await mkdir(folder.file('empty'));
  expect((await rejection(openStoredTensors(folder.file('empty')))).code).toBe('checkpoint_missing');
  expect((await rejection(openStoredTensors(folder.file('nowhere')))).code).toBe('checkpoint_missing');
});
