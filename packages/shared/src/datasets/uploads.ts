import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import type { Redis } from 'ioredis';
import { z } from 'zod';
import type { Dataset } from '../contracts/dataset.ts';
import { AtelierError } from '../errors.ts';
import { TENANT_NAME } from '../contracts/api-key.ts';
import { KEY_PREFIX, checkedTenant } from '../jobs/keys.ts';
import { withLock } from '../lock.ts';
import type { ObjectStore, PresignedPut } from '../object-store/types.ts';
import {
  idTime,
  isUploadId,
  newDatasetId,
  newUploadId,
  uploadArchiveKey,
  uploadKey,
  uploadsPrefix,
} from './names.ts';
import { DatasetStore } from './store.ts';

/** `upload.json`: what a client announced and what became of it. */
const DatasetUploadRecord = z.strictObject({
  id: z.string(),
  /** Of the dataset that it is to become. */
  name: z.string(),
  size: z.int(),
  sha256: z.string().nullable(),
  /** Until when the archive may be sent. */
  expires_at: z.iso.datetime(),
  /** SHA-256 of the secret with which the API itself takes the archive. */
  token_sha256: z.string(),
  /** The dataset that the last completion was making; it may have died over it. */
  dataset: z.string().nullable(),
});
export type DatasetUploadRecord = z.infer<typeof DatasetUploadRecord>;

const ARCHIVE_TYPE = 'application/zip';
/** A request that began in time may take hours over a slow line. */
const COMPLETE_WITHIN_MS = 12 * 3_600_000;
/** Later than any completion ends. */
const ABANDONED_MS = 24 * 3_600_000;
/** With these the archive is judged: sending a completion again cannot help. */
const VERDICTS = new Set(['dataset_invalid', 'payload_too_large']);

/**
 * Archives on their way to become datasets: announced, sent to a URL, completed.
 *
 * ### Announced
 * `upload.json` says what will come; a bucket signs a URL for just that, else the API takes it, for whoever has the
 * token. Until it expires the archive can be sent again and replaces the one before.
 * ### Completed
 * Under a lock the archive is compared with what was announced and given to the caller, who makes the dataset whose
 * id is in `upload.json` by then. A completion that died before that dataset was visible can be repeated, one that
 * died afterwards is found to be done. The archive goes, the document stays for a day and says which dataset it was.
 * ### Refused
 * An archive that is no dataset takes the upload with it.
 *
 * Every method rejects with AtelierError `store_unavailable` or `queue_unavailable` while the part is away.
 */
export class DatasetUploads {
  readonly #store: ObjectStore;
  readonly #datasets: DatasetStore;
  readonly #redis: Redis;

  constructor(store: ObjectStore, redis: Redis) {
    this.#store = store;
    this.#datasets = new DatasetStore(store);
    this.#redis = redis;
  }

  /**
   * @param presign whether the archive goes to a URL of the store, which must have some then
   * @returns the request that sends the archive, or the token with which {@link receive} takes it
   * @throws AtelierError `payload_too_large` for more than the store takes in one request
   */
  async announce(
    tenant: string,
    announced: Pick<DatasetUploadRecord, 'name' | 'size' | 'sha256'>,
    { seconds, presign }: { seconds: number; presign: boolean },
  ): Promise<{ upload: DatasetUploadRecord; presigned: PresignedPut | null; token: string }> {
    const id = newUploadId();
    // Whoever has it has no key that would say the tenant.
    const token = `${checkedTenant(tenant)}.${randomBytes(32).toString('base64url')}`;
    const expires = new Date(Date.now() + seconds * 1_000).toISOString();
    const presigned = presign
      ? await this.#store.presignPut!(uploadArchiveKey(tenant, id), {
          seconds,
          size: announced.size,
          contentType: ARCHIVE_TYPE,
        })
      : null;
    const { name, size, sha256 } = announced;
    const upload: DatasetUploadRecord = {
      id,
      name,
      size,
      sha256,
      expires_at: expires,
      token_sha256: digest(token),
      dataset: null,
    };
    await this.#write(tenant, upload);
    return { upload, presigned, token };
  }

  /**
   * The upload whose archive may be sent now by who has the token, and whose it is.
   * @throws AtelierError `not_found`; `unauthorized`; `upload_expired`; `conflict` when it was completed
   */
  async expected(id: string, token: string): Promise<{ tenant: string; upload: DatasetUploadRecord }> {
    const unauthorized = () =>
      new AtelierError('unauthorized', 'X-Upload-Token: allowed is that of the announcement');
    // Whoever has none does not get as far as the store.
    const tenant = token.slice(0, Math.max(0, token.indexOf('.')));
    if (!TENANT_NAME.test(tenant)) throw unauthorized();
    const upload = await this.#read(tenant, id);
    if (!timingSafeEqual(Buffer.from(digest(token)), Buffer.from(upload.token_sha256))) throw unauthorized();
    if (await this.#isComplete(tenant, upload)) throw completed(upload);
    if (isExpired(upload)) throw expired(upload);
    return { tenant, upload };
  }

  /** Stores the archive; what comes from `body` as an error is thrown as it is, and nothing is stored then. */
  async receive(tenant: string, id: string, body: Readable): Promise<void> {
    await this.#store.put(uploadArchiveKey(tenant, id), body, { contentType: ARCHIVE_TYPE });
  }

  /**
   * Makes an upload a dataset.
   * @param make reads the archive and makes the dataset of the given id
   * @throws AtelierError `not_found`; `conflict` when nothing was sent yet or it was completed before;
   * `upload_expired`; what `make` throws; `dataset_invalid` for another size than was announced
   */
  async complete(
    tenant: string,
    id: string,
    make: (upload: DatasetUploadRecord, archive: Readable, datasetId: string) => Promise<Dataset>,
  ): Promise<Dataset> {
    return withLock(this.#redis, [completingKey(tenant, id)], async () => {
      const upload = await this.#read(tenant, id);
      if (await this.#isComplete(tenant, upload)) {
        await this.#store.delete(uploadArchiveKey(tenant, id));
        throw completed(upload);
      }
      if (Date.now() - idTime(id) > COMPLETE_WITHIN_MS) throw expired(upload);
      const archive = await this.#archive(tenant, upload);
      const datasetId = newDatasetId();
      await this.#write(tenant, { ...upload, dataset: datasetId });
      try {
        const dataset = await make(upload, archive.body, datasetId);
        // It is a dataset, whatever happens to what is left of the upload; sweep() does it later.
        await this.#store.delete(uploadArchiveKey(tenant, id)).catch(() => {});
        return dataset;
      } catch (error) {
        if (isVerdict(error)) await this.#remove(tenant, id).catch(() => {});
        throw error;
      } finally {
        archive.body.destroy();
      }
    });
  }

  /**
   * Removes uploads that nobody completed, and what is left of those that were.
   * @param now milliseconds since 1970
   */
  async sweep(tenant: string, now = Date.now()): Promise<void> {
    const prefix = uploadsPrefix(tenant);
    for (let cursor: string | undefined, first = true; first || cursor !== undefined; first = false) {
      const page = await this.#store.list(prefix, cursor === undefined ? {} : { cursor });
      for (const { key } of page.objects) {
        const id = key.slice(prefix.length).split('/', 1)[0]!;
        if (!isUploadId(id)) continue;
        // They are listed in order of time.
        if (now - idTime(id) <= ABANDONED_MS) return;
        await this.#store.delete(key);
      }
      cursor = page.cursor;
    }
  }

  async #isComplete(tenant: string, { dataset }: DatasetUploadRecord): Promise<boolean> {
    return dataset !== null && (await this.#datasets.get(tenant, dataset)) !== null;
  }

  async #archive(tenant: string, upload: DatasetUploadRecord) {
    const object = await this.#store.get(uploadArchiveKey(tenant, upload.id));
    if (!object) {
      await this.#store.ping();
      if (isExpired(upload)) throw expired(upload);
      throw new AtelierError('conflict', `Nothing has been sent to the URL of ${upload.id} yet`);
    }
    if (object.size !== upload.size) {
      object.body.destroy();
      await this.#remove(tenant, upload.id);
      const message = `found ${object.size} bytes, announced were ${upload.size}`;
      throw new AtelierError('dataset_invalid', `size: ${message}`, { errors: [{ field: 'size', message }] });
    }
    return object;
  }

  /** @throws AtelierError `not_found` */
  async #read(tenant: string, id: string): Promise<DatasetUploadRecord> {
    const key = isUploadId(id) ? uploadKey(tenant, id) : null;
    const object = key && (await this.#store.get(key));
    if (!object) {
      await this.#store.ping();
      throw new AtelierError('not_found', `No upload has the id ${JSON.stringify(id.slice(0, 64))}`);
    }
    const bytes = await buffer(object.body).catch((cause: unknown) => {
      throw new AtelierError('store_unavailable', `Reading ${key} failed: ${String(cause)}`, { cause });
    });
    return DatasetUploadRecord.parse(JSON.parse(bytes.toString()));
  }

  async #write(tenant: string, upload: DatasetUploadRecord): Promise<void> {
    await this.#store.put(uploadKey(tenant, upload.id), Buffer.from(`${JSON.stringify(upload, null, 2)}\n`), {
      contentType: 'application/json',
    });
  }

  async #remove(tenant: string, id: string): Promise<void> {
    await this.#store.delete(uploadArchiveKey(tenant, id));
    await this.#store.delete(uploadKey(tenant, id));
  }
}

const completingKey = (tenant: string, id: string): string =>
  `${KEY_PREFIX}:tenant:${checkedTenant(tenant)}:upload:${id.slice(0, 64)}:completing`;

const digest = (text: string): string => createHash('sha256').update(text).digest('hex');

const isVerdict = (error: unknown): boolean => error instanceof AtelierError && VERDICTS.has(error.code);

const isExpired = ({ expires_at }: DatasetUploadRecord): boolean => Date.parse(expires_at) <= Date.now();

function expired({ id, expires_at }: DatasetUploadRecord): AtelierError {
  return new AtelierError('upload_expired', `The URL of ${id} expired at ${expires_at}; announce it again`);
}

function completed({ id, dataset }: DatasetUploadRecord): AtelierError {
  return new AtelierError('conflict', `${id} has become the dataset ${dataset}`);
}
