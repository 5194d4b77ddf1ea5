import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';

/** Everything that a module imports at run time, files followed: the names of packages. */
async function packagesOf(file: string, seen = new Set<string>()): Promise<Set<string>> {
  const packages = new Set<string>();
  if (seen.has(file)) return packages;
  seen.add(file);
  const text = await readFile(file, 'utf8');
  for (const [, what, from] of text.matchAll(/^(?:import|export) ([^;]*?)from '([^']+)';/gm)) {
    if (what!.startsWith('type ')) continue;
    if (!from!.startsWith('.')) packages.add(from!);
    else for (const name of await packagesOf(join(dirname(file), from!), seen)) packages.add(name);
  }
  return packages;
}

test('reading LoRAs needs no ONNX Runtime, which the API does without', async () => {
  const packages = await packagesOf(join(import.meta.dirname, 'index.ts'));
  expect(packages).toContain('node:fs/promises');
  expect([...packages].filter((name) => !name.startsWith('node:'))).toEqual([]);
  expect(await packagesOf(join(import.meta.dirname, '../index.ts'))).toContain('onnxruntime-node');
});
