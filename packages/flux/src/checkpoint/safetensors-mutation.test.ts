import { writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { FluxError } from '../errors.ts';
import { DTYPE_BYTES, type Dtype } from './dtypes.ts';
import { openSafetensors, writeSafetensors, type SafetensorsFile } from './safetensors.ts';
import { entry, generator, pick, type Random, temporaryFolder } from './testing.ts';

const folder = temporaryFolder();

/** Changes, drops or inserts single bytes anywhere, the length prefix included, or cuts or extends the file. */
function mutateBytes(random: Random, valid: Buffer): Buffer {
  const at = random(valid.length);
  const byte = Buffer.of(random(2) ? random(256) : pick(random, [...Buffer.from('{}[]",:0189-.eE\\ ')]));
  switch (random(5)) {
    case 0:
      return Buffer.concat([valid.subarray(0, at), byte, valid.subarray(at + 1)]);
    case 1:
      return Buffer.concat([valid.subarray(0, at), valid.subarray(at + 1)]);
    case 2:
      return Buffer.concat([valid.subarray(0, at), byte, valid.subarray(at)]);
    case 3:
      return valid.subarray(0, at);
    default:
      return Buffer.concat([valid, Buffer.alloc(1 + random(9))]);
  }
}

const VALUES: readonly unknown[] = [
  null,
  true,
  '',
  'F32',
  'BF16',
  'F8_E4M3',
  'I64',
  'NOPE',
  -1,
  0,
  1,
  2,
  4,
  6,
  8,
  12,
  24,
  0.5,
  1e308,
  2 ** 53,
  2 ** 63,
  [],
  [0],
  [2],
  [2, 3],
  [3, 2],
  [0, 8],
  [8, 12],
  [2 ** 31, 2 ** 31],
  {},
  { dtype: 'F32', shape: [2], data_offsets: [0, 8] },
  { dtype: 'U8', shape: [0], data_offsets: [8, 8] },
];

/** Replaces, drops or adds a value somewhere in the header, and keeps the rest of the file as it is. */
function mutateJson(random: Random, header: Record<string, unknown>, data: Buffer): Buffer {
  const copy = structuredClone(header);
  let target: Record<string, unknown> = copy;
  for (let depth = random(4); depth > 0; depth--) {
    const inner = target[pick(random, Object.keys(target))];
    if (typeof inner !== 'object' || inner === null || Object.keys(inner).length === 0) break;
    target = inner as Record<string, unknown>;
  }
  const key = pick(random, [...Object.keys(target), 'new', '__proto__', '__metadata__', '1']);
  if (random(4) === 0) delete target[key];
  else
    Object.defineProperty(target, key, { value: pick(random, VALUES), enumerable: true, configurable: true });
  const json = Buffer.from(JSON.stringify(copy));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.byteLength));
  return Buffer.concat([length, json, data]);
}

/** Whether an accepted file adds up, worked out from its bytes without the code under test. */
function addsUp(bytes: Buffer, file: SafetensorsFile): boolean {
  const length = Number(bytes.readBigUInt64LE(0));
  const text = bytes.subarray(8, 8 + length).toString();
  const declared = new Map(Object.entries(JSON.parse(text) as Record<string, unknown>));
  declared.delete('__metadata__');
  if (declared.size !== file.tensors.size) return false;
  if ((text.match(/"data_offsets"\s*:/g) ?? []).length !== declared.size) return false;
  const covered = new Uint8Array(bytes.length - 8 - length);
  for (const [name, value] of declared) {
    const {
      dtype,
      shape,
      data_offsets: offsets,
    } = value as { dtype: Dtype; shape: number[]; data_offsets: number[] };
    const [begin, end] = offsets as [number, number];
    const size = shape.reduce((product, count) => product * BigInt(count), BigInt(DTYPE_BYTES[dtype]));
    const info = file.tensors.get(name);
    if (BigInt(end - begin) !== size || end > covered.length) return false;
    if (info?.offset !== 8 + length + begin || info.byteLength !== end - begin || info.dtype !== dtype)
      return false;
    for (let i = begin; i < end; i++) covered[i]!++;
  }
  return covered.every((times) => times === 1);
}

test('thousands of mangled files are refused with a coded error, or add up', async () => {
  const path = folder.file('mutant.safetensors');
  await writeSafetensors(
    path,
    [
      entry('a', 'F32', [2]),
      entry('b.weight', 'BF16', [2, 3]),
      entry('c', 'F8_E4M3', [3]),
      entry('d', 'U8', [0]),
    ],
    { format: 'pt' },
  );
  const valid = await readFile(path);
  const length = Number(valid.readBigUInt64LE(0));
  const header = JSON.parse(valid.subarray(8, 8 + length).toString()) as Record<string, unknown>;
  const data = valid.subarray(8 + length);
  const random = generator(20);
  const outcomes = { refused: 0, accepted: 0 };
  const failures: { mutant: string; outcome: unknown }[] = [];
  for (let i = 0; i < 3000; i++) {
    const mutant = random(2) ? mutateBytes(random, valid) : mutateJson(random, header, data);
    writeFileSync(path, mutant);
    const outcome = await openSafetensors(path).catch((error: unknown) => error);
    if (outcome instanceof FluxError) {
      outcomes.refused++;
      if (!outcome.message.startsWith(`${path}: `))
        failures.push({ mutant: mutant.toString('latin1'), outcome });
    } else if (outcome instanceof Error || !addsUp(mutant, outcome as SafetensorsFile)) {
      failures.push({ mutant: mutant.toString('latin1'), outcome });
    } else {
      outcomes.accepted++;
    }
  }
  expect(failures).toEqual([]);
  // Both must happen, or the mutations are too weak or too strong to show anything.
  expect(outcomes.refused).toBeGreaterThan(1500);
  expect(outcomes.accepted).toBeGreaterThan(100);
});
