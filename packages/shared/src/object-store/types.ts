import type { Readable } from 'node:stream';

export interface PutOptions {
  contentType: string;
  /** Stores only when the key does not exist yet; else rejects with `conflict`. */
  ifNoneMatch?: '*';
}

export interface ObjectInfo {
  key: string;
  /** Bytes of the whole object. */
  size: number;
  contentType: string;
  /** Opaque; another one whenever the content is another. */
  etag: string;
  modifiedAt: Date;
}

export interface StoredObject extends ObjectInfo {
  /** The bytes, or those of the range; must be consumed or destroyed. */
  body: Readable;
  /** Present when a range was asked for: first and last byte, both inclusive. */
  range?: { start: number; end: number };
}

export interface ObjectPage {
  objects: ObjectInfo[];
  /** Give it to the next call; absent on the last page. */
  cursor?: string;
}

/** What a single PUT of S3 takes. */
export const MAX_PRESIGNED_PUT_BYTES = 5 * 2 ** 30;

export interface PresignedPut {
  url: string;
  /** To be sent as they are; beside them Content-Length, which every client sends by itself, is part of the signature. */
  headers: Record<string, string>;
}

/**
 * Where everything durable lives. A key is `/`-separated segments of letters, digits and `._=@+-`, at most 512
 * characters, without empty, `.` or `..` segments. Two implementations keep one promise each, checked by one suite:
 * an object is visible wholly or not at all, and a conditional put has exactly one winner.
 * Every method rejects with AtelierError `store_unavailable` when the store cannot be reached, and with
 * `validation_failed` for a key that breaks the rules.
 */
export interface ObjectStore {
  /** @throws AtelierError `conflict` when `ifNoneMatch` is given and the key exists */
  put(key: string, body: Uint8Array | Readable, options: PutOptions): Promise<{ etag: string; size: number }>;
  /** `range` in bytes, both ends inclusive, `end` open when absent; null when the key does not exist. */
  get(key: string, options?: { range?: { start: number; end?: number } }): Promise<StoredObject | null>;
  head(key: string): Promise<ObjectInfo | null>;
  /** Makes `to` what `from` is, replacing what was there; false when `from` does not exist. */
  copy(from: string, to: string): Promise<boolean>;
  /** Without effect when the key does not exist. */
  delete(key: string): Promise<void>;
  /**
   * Objects whose key starts with `prefix`, in ascending order of key; `limit` 1 to 1000, 1000 when absent. `cursor`
   * is that of the page before, or any other text of a key: what comes after it is listed.
   */
  list(prefix: string, options?: { cursor?: string; limit?: number }): Promise<ObjectPage>;
  /**
   * A URL under which anybody can GET the object for `seconds`, as a download called `filename`. Absent where the
   * store has no server of its own.
   */
  presignGet?(key: string, options: { seconds: number; filename: string }): Promise<string>;
  /**
   * A request with which anybody can store the object for `seconds`: `size` bytes of `contentType`, no more, no fewer.
   * Absent where the store has no server of its own.
   * @throws AtelierError `payload_too_large` above {@link MAX_PRESIGNED_PUT_BYTES}
   */
  presignPut?(
    key: string,
    options: { seconds: number; size: number; contentType: string },
  ): Promise<PresignedPut>;
  /** Resolves when the store can be used, for readiness. */
  ping(): Promise<void>;
  close(): Promise<void>;
}
