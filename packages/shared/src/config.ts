import { resolve } from 'node:path';
import { z } from 'zod';

const SECOND = 1_000;
const MINUTE = 60 * SECOND;

const bool = (fallback: boolean) =>
  z
    .enum(['true', 'false', '1', '0'])
    .default(fallback ? 'true' : 'false')
    .transform((v) => v === 'true' || v === '1');
const int = (min: number, max: number, fallback: number) =>
  z.coerce.number().int().min(min).max(max).default(fallback);
const optional = <T extends z.ZodType>(schema: T) =>
  z.preprocess((v) => (v === '' ? undefined : v), schema.optional());

const Env = z
  .object({
    REDIS_URL: z.url({ protocol: /^rediss?$/, hostname: /.+/ }).default('redis://127.0.0.1:6379'),

    /** Address that the API binds. Anything but loopback makes the API ask for keys. */
    ATELIER_HOST: z.string().min(1).default('127.0.0.1'),
    ATELIER_PORT: int(0, 65_535, 6006),
    /** Where clients reach the API, when a proxy stands before it; image URLs start with it. */
    ATELIER_PUBLIC_URL: optional(z.url({ protocol: /^https?$/ })),

    /** Everything that outlives a process when the store is a folder. */
    ATELIER_DATA_DIR: z.string().min(1).default('.atelier'),
    ATELIER_STORE: z.enum(['folder', 's3']).default('folder'),
    S3_BUCKET: optional(z.string().min(3).max(63)),
    /** Any S3-compatible server; AWS when absent. */
    S3_ENDPOINT: optional(z.url({ protocol: /^https?$/ })),
    S3_REGION: z.string().min(1).default('us-east-1'),
    /** Puts the bucket in the path instead of the host name; most servers other than AWS need it. */
    S3_FORCE_PATH_STYLE: bool(false),
    /** Both or none; without them the SDK's default chain finds credentials. */
    S3_ACCESS_KEY_ID: optional(z.string().min(1)),
    S3_SECRET_ACCESS_KEY: optional(z.string().min(1)),

    ATELIER_CATALOG: z.string().min(1).default('models/catalog.json'),
    /** What the folders of the catalog are relative to; the catalog's own folder when absent. */
    ATELIER_MODELS_DIR: optional(z.string().min(1)),
    /** Quantised weights and downloads; may be deleted at any time. Below the data folder when absent. */
    ATELIER_CACHE_DIR: optional(z.string().min(1)),

    /** Where the engine computes; `auto` takes an NVIDIA GPU when there is one that can be used. */
    ATELIER_ENGINE_PROVIDER: z.enum(['auto', 'cuda', 'webgpu', 'cpu']).default('auto'),
    /** What a model may take of a GPU's memory; all that is free when absent. */
    ATELIER_ENGINE_MEMORY_BYTES: optional(
      z.coerce
        .number()
        .int()
        .min(2 ** 28),
    ),
    /** Threads of the engine's operators; the runtime's own choice when absent. */
    ATELIER_ENGINE_THREADS: optional(z.coerce.number().int().min(1).max(256)),
    /** Loads the default model when the worker starts instead of at the first job. */
    ATELIER_ENGINE_PRELOAD: bool(true),
    /** How often a job is tried before it fails. */
    ATELIER_JOB_ATTEMPTS: int(1, 20, 3),
    /** Wait before the second try; doubles with each further one. */
    ATELIER_JOB_BACKOFF_MS: int(0, 10 * MINUTE, SECOND),
    /** A worker that has not renewed its lock for so long has lost its job to another. */
    ATELIER_LOCK_MS: int(SECOND, 10 * MINUTE, 30 * SECOND),
    /** After SIGTERM: how long a running job may go on before it is given back. */
    ATELIER_SHUTDOWN_GRACE_MS: int(0, 60 * MINUTE, 20 * SECOND),
    /** How long a cancelled engine may take to reach its next step before it is killed. */
    ATELIER_CANCEL_GRACE_MS: int(0, 10 * MINUTE, 10 * SECOND),

    /** LoRA files kept on disk by a worker, the least recently used out first. */
    ATELIER_STYLE_CACHE_BYTES: int(0, 2 ** 50, 20 * 2 ** 30),

    /** Health and metrics of worker and trainer; the API serves its own on its port. 0 chooses a free port. */
    ATELIER_METRICS_HOST: z.string().min(1).default('127.0.0.1'),
    ATELIER_METRICS_PORT: int(0, 65_535, 0),
    LOG_LEVEL: z.enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']).default('info'),
  })
  .superRefine((env, context) => {
    if (env.ATELIER_STORE === 's3' && !env.S3_BUCKET)
      context.addIssue({ code: 'custom', path: ['S3_BUCKET'], message: 'is needed when ATELIER_STORE=s3' });
    if (Boolean(env.S3_ACCESS_KEY_ID) !== Boolean(env.S3_SECRET_ACCESS_KEY))
      context.addIssue({
        code: 'custom',
        path: [env.S3_ACCESS_KEY_ID ? 'S3_SECRET_ACCESS_KEY' : 'S3_ACCESS_KEY_ID'],
        message: 'is needed with its other half',
      });
  });

/** The settings of every process, from the environment; names are those of the variables. Paths are absolute. */
export type Config = Readonly<
  z.infer<typeof Env> & { ATELIER_CACHE_DIR: string; ATELIER_MODELS_DIR: string }
>;

/**
 * Reads and checks the environment once; relative paths are resolved against `cwd`.
 * @throws Error with one line for each variable that is wrong: its name, what was found, what is allowed
 */
export function loadConfig(env: NodeJS.ProcessEnv = process.env, cwd = process.cwd()): Config {
  const parsed = Env.safeParse(env);
  if (!parsed.success) {
    const lines = parsed.error.issues.map((issue) => {
      const name = issue.path.join('.');
      const secret = /SECRET|KEY|REDIS_URL/.test(name);
      const found =
        env[name] === undefined ? 'not set' : secret ? 'value not shown' : JSON.stringify(env[name]);
      return `  ${name} (${found}): ${issue.message}`;
    });
    throw new Error(`Invalid environment:\n${lines.join('\n')}`);
  }
  const e = parsed.data;
  const dataDir = resolve(cwd, e.ATELIER_DATA_DIR);
  const catalog = resolve(cwd, e.ATELIER_CATALOG);
  return Object.freeze({
    ...e,
    ATELIER_DATA_DIR: dataDir,
    ATELIER_CATALOG: catalog,
    ATELIER_MODELS_DIR: e.ATELIER_MODELS_DIR ? resolve(cwd, e.ATELIER_MODELS_DIR) : resolve(catalog, '..'),
    ATELIER_CACHE_DIR: e.ATELIER_CACHE_DIR ? resolve(cwd, e.ATELIER_CACHE_DIR) : resolve(dataDir, 'cache'),
  });
}
