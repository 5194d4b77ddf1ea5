import { crc32, deflateRawSync } from 'node:zlib';

/** One entry of a zip file; what is absent is as it should be. */
export interface ZipEntry {
  name: string;
  data?: string | Uint8Array;
  /** Stored without compression. */
  stored?: boolean;
  /** Unix mode with the file type, such as 0o120777 for a symbolic link. */
  mode?: number;
  /** General purpose flags; bit 0 says encrypted. */
  flags?: number;
  /** Number of the compression method that the headers claim. */
  method?: number;
  /** Claims of the headers that differ from the truth. */
  claims?: { size?: number; packedSize?: number; crc?: number };
  /** Uses the bytes of the entry of this index instead of its own. */
  sameBytesAs?: number;
}

/**
 * A zip file (APPNOTE 4.3) with the given entries, also such as no packer writes.
 * @param claims `entries`: the number of them that the end record gives
 */
export function zip(entries: readonly ZipEntry[], claims: { entries?: number } = {}): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  const offsets: number[] = [];
  const packed: Buffer[] = [];
  let offset = 0;
  for (const [index, entry] of entries.entries()) {
    const data = Buffer.from(entry.data ?? '');
    const shared = entry.sameBytesAs;
    packed[index] = shared === undefined ? (entry.stored ? data : deflateRawSync(data)) : packed[shared]!;
    offsets[index] = shared === undefined ? offset : offsets[shared]!;
    const name = Buffer.from(entry.name);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE((entry.flags ?? 0) | 0x800, 2);
    common.writeUInt16LE(entry.method ?? (entry.stored ? 0 : 8), 4);
    common.writeUInt32LE(entry.claims?.crc ?? crc32(data), 10);
    common.writeUInt32LE(entry.claims?.packedSize ?? packed[index].length, 14);
    common.writeUInt32LE(entry.claims?.size ?? data.length, 18);
    common.writeUInt16LE(name.length, 22);
    if (shared === undefined) {
      const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, name, packed[index]]);
      parts.push(local);
      offset += local.length;
    }
    const rest = Buffer.alloc(14);
    rest.writeUInt32LE(((entry.mode ?? 0o100644) << 16) >>> 0, 6);
    rest.writeUInt32LE(offsets[index], 10);
    // Made by version 2.0 on Unix.
    directory.push(Buffer.from('PK\x01\x02\x14\x03'), common, rest, name);
  }
  const listing = Buffer.concat(directory);
  const end = Buffer.alloc(18);
  const count = claims.entries ?? entries.length;
  end.writeUInt16LE(count, 4);
  end.writeUInt16LE(count, 6);
  end.writeUInt32LE(listing.length, 8);
  end.writeUInt32LE(offset, 12);
  return Buffer.concat([...parts, listing, Buffer.from('PK\x05\x06'), end]);
}
