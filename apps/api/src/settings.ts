import { z } from 'zod';
import type { DatasetLimits } from './datasets/limits.ts';
import { WEBHOOK_ENV, type WebhookSettings, webhookSettings } from './webhooks/settings.ts';

const Env = z.object({
  ...WEBHOOK_ENV,
  /** Keys that clients send as `Authorization: Bearer <key>`, separated by commas. */
  ATELIER_API_KEYS: z
    .string()
    .default('')
    .transform((list) =>
      list
        .split(',')
        .map((key) => key.trim())
        .filter(Boolean),
    )
    .pipe(z.array(z.string().min(16, 'each key needs at least 16 characters'))),
  /** Largest request body; an init image as a data URI takes 4/3 of its bytes. */
  ATELIER_MAX_BODY_BYTES: z.coerce
    .number()
    .int()
    .min(16_384)
    .max(256 * 2 ** 20)
    .default(24 * 2 ** 20),
  /** Largest LoRA file that can be imported; above 5 GiB S3 does not copy an object, as a rename does. */
  ATELIER_MAX_LORA_BYTES: z.coerce
    .number()
    .int()
    .min(1_024)
    .max(5 * 2 ** 30)
    .default(2 * 2 ** 30),
  /** Largest dataset, as it is sent and unpacked. */
  ATELIER_MAX_DATASET_BYTES: z.coerce
    .number()
    .int()
    .min(1_024)
    .max(64 * 2 ** 30)
    .default(2 * 2 ** 30),
  /** Most images of a dataset. */
  ATELIER_MAX_DATASET_IMAGES: z.coerce.number().int().min(1).max(100_000).default(2_000),
  /** Largest file of an image of a dataset; a few are in memory at once. */
  ATELIER_MAX_DATASET_IMAGE_BYTES: z.coerce
    .number()
    .int()
    .min(1_024)
    .max(256 * 2 ** 20)
    .default(32 * 2 ** 20),
  /** How many times its packed size a file of an archive may have; deflate reaches 1032, pictures hardly 1. */
  ATELIER_MAX_ARCHIVE_RATIO: z.coerce.number().min(2).max(1_032).default(100),
  /** Whether downloads of LoRAs are redirected to the bucket; off where clients cannot reach it. */
  ATELIER_PRESIGNED_DOWNLOADS: z
    .enum(['true', 'false', '1', '0'])
    .default('true')
    .transform((value) => value === 'true' || value === '1'),
  /** Whether archives of datasets are sent to the bucket; off where clients cannot reach it, the API takes them then. */
  ATELIER_PRESIGNED_UPLOADS: z
    .enum(['true', 'false', '1', '0'])
    .default('true')
    .transform((value) => value === 'true' || value === '1'),
});

/** The settings that only the API has; those it shares with the other processes are in Config. */
export interface ApiSettings {
  readonly keys: readonly string[];
  readonly maxBodyBytes: number;
  readonly maxLoraBytes: number;
  readonly dataset: DatasetLimits;
  readonly presignedDownloads: boolean;
  readonly presignedUploads: boolean;
  readonly webhooks: WebhookSettings;
}

/**
 * Reads the API's own variables and checks that what is open to a network asks for a key.
 *
 * @param host the address that the API will bind
 * @throws Error that names the variable; keys are never part of it
 */
export function loadSettings(host: string, env: NodeJS.ProcessEnv = process.env): ApiSettings {
  const parsed = Env.safeParse(env);
  if (!parsed.success) {
    const lines = parsed.error.issues.map((issue) => `  ${String(issue.path[0])}: ${issue.message}`);
    throw new Error(`Invalid environment:\n${lines.join('\n')}`);
  }
  const { ATELIER_API_KEYS: keys, ATELIER_MAX_BODY_BYTES: maxBodyBytes } = parsed.data;
  const { ATELIER_MAX_LORA_BYTES: maxLoraBytes, ATELIER_PRESIGNED_DOWNLOADS: presignedDownloads } =
    parsed.data;
  if (keys.length === 0 && !isLoopback(host)) {
    throw new Error(
      `ATELIER_HOST=${host} is open to the network, and ATELIER_API_KEYS is not set: ` +
        'set at least one key, or bind to 127.0.0.1',
    );
  }
  const dataset: DatasetLimits = Object.freeze({
    maxBytes: parsed.data.ATELIER_MAX_DATASET_BYTES,
    maxImages: parsed.data.ATELIER_MAX_DATASET_IMAGES,
    maxImageBytes: parsed.data.ATELIER_MAX_DATASET_IMAGE_BYTES,
    maxRatio: parsed.data.ATELIER_MAX_ARCHIVE_RATIO,
  });
  const presignedUploads = parsed.data.ATELIER_PRESIGNED_UPLOADS;
  // With a public URL somebody forwards requests from elsewhere.
  const isLocal = keys.length === 0 && isLoopback(host) && !env['ATELIER_PUBLIC_URL'];
  const webhooks = webhookSettings(parsed.data, isLocal);
  return Object.freeze({
    keys,
    maxBodyBytes,
    maxLoraBytes,
    dataset,
    presignedDownloads,
    presignedUploads,
    webhooks,
  });
}

/** Whether only programs on this machine can connect to the address. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
}
