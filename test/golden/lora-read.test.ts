import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { FluxError } from '../../packages/flux/src/errors.ts';
import { readLora } from '../../packages/flux/src/lora/read.ts';
import { loraTarget } from '../../packages/flux/src/lora/target.ts';
import { changeOf } from '../../packages/flux/src/lora/testing.ts';
import type { LoraDelta, LoraTarget } from '../../packages/flux/src/lora/types.ts';
import { FIXTURES, openTiny, rms } from './support.ts';

/** Numbers that tell a delta from any other. */
interface Fingerprint {
  rms: number;
  /** The first four values. */
  first: number[];
  /** Sum of delta[i, j] cos(i) sin(1 + j). */
  probe: number;
}

type Part = Record<string, Fingerprint>;

const FOLDER = join(FIXTURES, 'lora');
const { files, bad } = JSON.parse(readFileSync(join(FOLDER, 'goldens.json'), 'utf8')) as {
  files: Record<string, { transformer: Part; clip: Part }>;
  /** The error must name one of the keys. */
  bad: Record<string, { keys: string[]; problem: string }>;
};
/** Of a delta's values, whose rms is 0.01 to 0.1. */
const TOLERANCE = 1e-6;

let target: LoraTarget;
beforeAll(async () => {
  const { opened } = await openTiny('tiny-dev');
  target = loraTarget({ transformer: opened.transformer.spec, clip: opened.clip.spec });
});

test.each(Object.keys(files))('%s: the deltas are those of the reference', async (name) => {
  const lora = await readLora(join(FOLDER, name), target);
  compareDeltas(lora.transformer, files[name]!.transformer);
  compareDeltas(lora.clip, files[name]!.clip);
  expect(lora.warnings.length > 0).toBe(name.startsWith('harmless/'));
  const found = await readLora(join(FOLDER, name), null);
  expect({ ...found }).toEqual({ ...lora });
});

test.each(Object.entries(bad))('%s is refused by name', async (name, { keys }) => {
  const error: unknown = await readLora(join(FOLDER, name), target).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(FluxError);
  expect((error as FluxError).code).toMatch(/^lora_/);
  const { message } = error as FluxError;
  expect({ message, names: keys.some((key) => message.includes(key)) }).toMatchObject({ names: true });
});

function compareDeltas(found: ReadonlyMap<string, LoraDelta>, expected: Part): void {
  // The reference also lists rows that XLabs' qkv_lora leaves alone, as zeros.
  const changed = Object.entries(expected).filter(([, { rms: size }]) => size > 0);
  expect([...found.keys()].sort()).toEqual(changed.map(([module]) => module).sort());
  for (const [module, print] of changed) {
    const { rows, columns, data } = changeOf(found.get(module)!);
    const first = Math.max(...print.first.map((value, i) => Math.abs(value - data[i]!)));
    let probe = 0;
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) probe += data[i * columns + j]! * Math.cos(i) * Math.sin(1 + j);
    expect(first).toBeLessThan(TOLERANCE);
    expect(Math.abs(rms(data) - print.rms)).toBeLessThan(TOLERANCE);
    expect(Math.abs(probe - print.probe)).toBeLessThan(TOLERANCE * rows * columns);
  }
}
