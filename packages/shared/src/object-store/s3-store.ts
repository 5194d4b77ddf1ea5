import {
  CopyObjectCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
} from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { getSignedUrl } from '@aws-sdk/s3-request-presigner';
import { Readable, Transform } from 'node:stream';
import { AtelierError } from '../errors.ts';
import { withBodyErrors } from './body.ts';
import { checkKey, checkPrefix } from './keys.ts';
import { MAX_PRESIGNED_PUT_BYTES } from './types.ts';
import type { ObjectInfo, ObjectPage, ObjectStore, PresignedPut, PutOptions, StoredObject } from './types.ts';

export interface S3Options {
  bucket: string;
  region: string;
  /** AWS when absent. */
  endpoint?: string | undefined;
  forcePathStyle: boolean;
  /** The SDK's default chain when absent. */
  credentials?: { accessKeyId: string; secretAccessKey: string } | undefined;
}

const CONNECT_TIMEOUT_MS = 3_000;
/** Silence on an open connection, not the time of a transfer. */
const IDLE_TIMEOUT_MS = 10_000;

/** A bucket of S3 or of a server that speaks its protocol, conditional writes included. */
export class S3Store implements ObjectStore {
  readonly #client: S3Client;
  readonly #bucket: string;

  constructor(options: S3Options) {
    this.#bucket = options.bucket;
    this.#client = new S3Client({
      region: options.region,
      forcePathStyle: options.forcePathStyle,
      ...(options.endpoint ? { endpoint: options.endpoint } : {}),
      ...(options.credentials ? { credentials: options.credentials } : {}),
      // The default adds checksum trailers that many compatible servers do not understand.
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      maxAttempts: 3,
      requestHandler: { connectionTimeout: CONNECT_TIMEOUT_MS, socketTimeout: IDLE_TIMEOUT_MS },
    });
  }

  put(
    key: string,
    body: Uint8Array | Readable,
    options: PutOptions,
  ): Promise<{ etag: string; size: number }> {
    return withBodyErrors(body, () => this.#translating(key, () => this.#put(key, body, options)));
  }

  async get(
    key: string,
    options: { range?: { start: number; end?: number } } = {},
  ): Promise<StoredObject | null> {
    checkKey(key);
    const { range } = options;
    return this.#translating(key, async () => {
      const response = await this.#client
        .send(
          new GetObjectCommand({
            Bucket: this.#bucket,
            Key: key,
            ...(range ? { Range: `bytes=${range.start}-${range.end ?? ''}` } : {}),
          }),
        )
        .catch(absentAsNull);
      if (!response) return null;
      const body = response.Body as Readable;
      const part = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(response.ContentRange ?? '');
      const size = part ? Number(part[3]) : (response.ContentLength ?? 0);
      const object = { ...describe(key, response), size, body };
      return part ? { ...object, range: { start: Number(part[1]), end: Number(part[2]) } } : object;
    });
  }

  async head(key: string): Promise<ObjectInfo | null> {
    checkKey(key);
    return this.#translating(key, async () => {
      const response = await this.#client
        .send(new HeadObjectCommand({ Bucket: this.#bucket, Key: key }))
        .catch(absentAsNull);
      return response && { ...describe(key, response), size: response.ContentLength ?? 0 };
    });
  }

  async copy(from: string, to: string): Promise<boolean> {
    checkKey(from);
    checkKey(to);
    return this.#translating(to, async () => {
      const source = [this.#bucket, ...from.split('/').map(encodeURIComponent)].join('/');
      const command = new CopyObjectCommand({ Bucket: this.#bucket, Key: to, CopySource: source });
      return (await this.#client.send(command).catch(absentAsNull)) !== null;
    });
  }

  async presignGet(key: string, options: { seconds: number; filename: string }): Promise<string> {
    checkKey(key);
    const command = new GetObjectCommand({
      Bucket: this.#bucket,
      Key: key,
      ResponseContentDisposition: `attachment; filename="${options.filename}"`,
    });
    return this.#translating(key, () => getSignedUrl(this.#client, command, { expiresIn: options.seconds }));
  }

  async presignPut(
    key: string,
    { seconds, size, contentType }: { seconds: number; size: number; contentType: string },
  ): Promise<PresignedPut> {
    checkKey(key);
    if (size > MAX_PRESIGNED_PUT_BYTES)
      throw new AtelierError(
        'payload_too_large',
        `size: found ${size}, allowed are at most ${MAX_PRESIGNED_PUT_BYTES} bytes in one PUT to a bucket`,
      );
    const command = new PutObjectCommand({
      Bucket: this.#bucket,
      Key: key,
      ContentLength: size,
      ContentType: contentType,
    });
    // The presigner leaves the type out of the signature unless told otherwise; the length is always in it.
    const signableHeaders = new Set(['host', 'content-length', 'content-type']);
    const url = await this.#translating(key, () =>
      getSignedUrl(this.#client, command, { expiresIn: seconds, signableHeaders }),
    );
    return { url, headers: { 'Content-Type': contentType } };
  }

  async delete(key: string): Promise<void> {
    checkKey(key);
    await this.#translating(key, () =>
      this.#client.send(new DeleteObjectCommand({ Bucket: this.#bucket, Key: key })).catch(absentAsNull),
    );
  }

  async list(prefix: string, options: { cursor?: string; limit?: number } = {}): Promise<ObjectPage> {
    checkPrefix(prefix);
    const { cursor, limit = 1_000 } = options;
    return this.#translating(prefix, async () => {
      const response = await this.#client.send(
        new ListObjectsV2Command({
          Bucket: this.#bucket,
          Prefix: prefix,
          MaxKeys: limit,
          ...(cursor === undefined ? {} : { StartAfter: cursor }),
        }),
      );
      // A listing has no content types: they are asked for one by one, as many at once as the client allows.
      const heads = await Promise.all((response.Contents ?? []).map(({ Key }) => this.head(Key!)));
      const objects = heads.filter((object) => object !== null);
      const last = response.Contents?.at(-1)?.Key;
      return response.IsTruncated && last !== undefined ? { objects, cursor: last } : { objects };
    });
  }

  async ping(): Promise<void> {
    await this.#translating('', () => this.#client.send(new HeadBucketCommand({ Bucket: this.#bucket })));
  }

  async close(): Promise<void> {
    this.#client.destroy();
  }

  async #put(
    key: string,
    body: Uint8Array | Readable,
    options: PutOptions,
  ): Promise<{ etag: string; size: number }> {
    checkKey(key);
    const condition = options.ifNoneMatch ? { IfNoneMatch: options.ifNoneMatch } : {};
    const target = { Bucket: this.#bucket, Key: key, ContentType: options.contentType, ...condition };
    if (!(body instanceof Readable)) {
      const { ETag } = await this.#client.send(new PutObjectCommand({ ...target, Body: body }));
      return { etag: bare(ETag), size: body.byteLength };
    }
    let size = 0;
    const counter = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        size += chunk.byteLength;
        done(null, chunk);
      },
    });
    // pipe() does not pass errors on, and an upload whose source fails silently would never end.
    body.once('error', (error) => counter.destroy(error));
    const upload = new Upload({ client: this.#client, params: { ...target, Body: body.pipe(counter) } });
    const { ETag } = await upload.done();
    return { etag: bare(ETag), size };
  }

  async #translating<T>(key: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof AtelierError) throw error;
      const status = error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined;
      if (status === 412 || status === 409)
        throw new AtelierError('conflict', `The object ${key} exists`, { cause: error });
      if (status === 416)
        throw new AtelierError('validation_failed', `The range is outside of ${key}`, { cause: error });
      throw new AtelierError(
        'store_unavailable',
        `The bucket ${this.#bucket} cannot be used: ${String(error)}`,
        { cause: error },
      );
    }
  }
}

function describe(
  key: string,
  response: { ContentType?: string | undefined; ETag?: string | undefined; LastModified?: Date | undefined },
) {
  return {
    key,
    contentType: response.ContentType ?? 'application/octet-stream',
    etag: bare(response.ETag),
    modifiedAt: response.LastModified ?? new Date(0),
  };
}

const bare = (etag: string | undefined): string => (etag ?? '').replaceAll('"', '');

function absentAsNull(error: unknown): null {
  if (error instanceof S3ServiceException && ['NoSuchKey', 'NotFound'].includes(error.name)) return null;
  throw error;
}
