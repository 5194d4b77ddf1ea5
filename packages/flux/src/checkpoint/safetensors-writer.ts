import { DTYPE_BYTES, type Dtype } from './dtypes.ts';
import { writeAtomically } from './atomic-file.ts';
import { METADATA_KEY } from './safetensors-header.ts';

/** One tensor to write. `data` gives its bytes, row-major and little-endian, in pieces of any size. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly data: Uint8Array | AsyncIterable<Uint8Array>;
}

/** Position in the reference implementation's list of dtypes, by which it sorts the widest first. */
const DTYPE_RANK = new Map(Object.keys(DTYPE_BYTES).map((dtype, rank) => [dtype, rank]));

/**
 * Writes a safetensors file piece by piece and atomically. Tensors are put in the order of the reference
 * implementation (widest dtype first, then by name), which keeps each aligned to its elements; the header is padded
 * to 8 bytes.
 *
 * @throws RangeError when an entry gives more or fewer bytes than its shape needs, or a name comes twice
 */
export async function writeSafetensors(
  path: string,
  entries: Iterable<TensorEntry>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const sorted = [...entries].sort(
    (a, b) => DTYPE_RANK.get(b.dtype)! - DTYPE_RANK.get(a.dtype)! || (a.name < b.name ? -1 : 1),
  );
  const header = encodeHeader(sorted, metadata);
  await writeAtomically(path, async (handle) => {
    await handle.writeFile(header);
    for (const entry of sorted) {
      let written = 0;
      for await (const bytes of entry.data instanceof Uint8Array ? [entry.data] : entry.data) {
        await handle.writeFile(bytes);
        written += bytes.byteLength;
      }
      const expected = entryBytes(entry);
      if (written !== expected) {
        throw new RangeError(`tensor ${entry.name} gave ${written} bytes; ${expected} were expected`);
      }
    }
  });
}

function entryBytes({ dtype, shape }: TensorEntry): number {
  return shape.reduce((bytes, length) => bytes * length, DTYPE_BYTES[dtype]);
}

function encodeHeader(
  entries: readonly TensorEntry[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const fields = new Map<string, unknown>();
  if (Object.keys(metadata).length > 0) fields.set(METADATA_KEY, metadata);
  let offset = 0;
  for (const entry of entries) {
    if (fields.has(entry.name) || entry.name === METADATA_KEY) {
      throw new RangeError(`tensor name ${entry.name} is taken`);
    }
    const end = offset + entryBytes(entry);
    fields.set(entry.name, { dtype: entry.dtype, shape: entry.shape, data_offsets: [offset, end] });
    offset = end;
  }
  // Joined by hand: an object would move names that look like integers to the front.
  const json = `{${[...fields].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',')}}`;
  const length = Math.ceil(Buffer.byteLength(json) / 8) * 8;
  const header = Buffer.alloc(8 + length, ' ');
  header.writeBigUInt64LE(BigInt(length), 0);
  header.write(json, 8);
  return header;
}
