import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { Config } from './config.ts';
import { AtelierError } from './errors.ts';

/** What a request without these fields gets. */
export interface ModelDefaults {
  width: number;
  height: number;
  steps: number;
  guidance: number;
  /** Tokens of the T5 encoder. */
  max_sequence_length: number;
}

/** Absolute paths of files and folders; the shape of ModelFiles in `@atelier/flux`. */
export interface ModelPaths {
  transformer: string;
  vae: string;
  textEncoder: string;
  textEncoder2: string;
  tokenizer: string;
  tokenizer2: string;
  scheduler: string;
}

export interface ModelEntry {
  name: string;
  title: string;
  family: 'flux';
  license: string;
  /** Round the transformer's matrices to this type once, into the cache, when the files have a wider one. */
  quantize: 'fp8' | null;
  defaults: ModelDefaults;
  files: ModelPaths;
}

const Defaults = z.strictObject({
  width: z.int().min(64).max(2048).multipleOf(16),
  height: z.int().min(64).max(2048).multipleOf(16),
  steps: z.int().min(1).max(50),
  guidance: z.number().min(0).max(30),
  max_sequence_length: z.int().min(1).max(512),
});

const DEFAULT_FILES = Object.freeze({
  transformer: 'transformer.safetensors',
  vae: 'ae.safetensors',
  text_encoder: 'text_encoder',
  text_encoder_2: 'text_encoder_2',
  tokenizer: 'tokenizer',
  tokenizer_2: 'tokenizer_2',
  scheduler: 'scheduler',
});

const Files = z.strictObject({
  transformer: z.string().min(1),
  vae: z.string().min(1),
  text_encoder: z.string().min(1),
  text_encoder_2: z.string().min(1),
  tokenizer: z.string().min(1),
  tokenizer_2: z.string().min(1),
  scheduler: z.string().min(1),
});

const CatalogFile = z.strictObject({
  $comment: z.string().optional(),
  models: z
    .array(
      z.strictObject({
        name: z
          .string()
          .regex(/^[a-z0-9][a-z0-9._-]{0,127}$/, 'must be lower case letters, digits and . _ -'),
        title: z.string().min(1),
        family: z.literal('flux'),
        folder: z.string().min(1),
        license: z.string().min(1),
        files: Files.partial().optional(),
        quantize: z.literal('fp8').optional(),
        defaults: Defaults.partial().optional(),
      }),
    )
    .min(1)
    .superRefine((models, context) => {
      const names = new Set<string>();
      for (const [index, { name }] of models.entries()) {
        if (names.has(name))
          context.addIssue({ code: 'custom', path: [index, 'name'], message: `${name} is there twice` });
        names.add(name);
      }
    }),
});

/** Defaults that a model's own folder declares. */
const ModelIndex = z.object({
  max_sequence_length: z.int().optional(),
  default_size: z.int().optional(),
  default_steps: z.int().optional(),
  default_guidance: z.number().optional(),
});

/** The models of this installation. */
export class Catalog {
  readonly models: readonly ModelEntry[];

  /** `models` must not be empty. */
  constructor(models: readonly ModelEntry[]) {
    this.models = models;
  }

  /** The first entry: what a request without a model gets. */
  get default(): ModelEntry {
    return this.models[0]!;
  }

  /** @throws AtelierError `unknown_model`, which lists the names */
  get(name: string): ModelEntry {
    const entry = this.models.find((model) => model.name === name);
    if (entry) return entry;
    const names = this.models.map((model) => model.name).join(', ');
    throw new AtelierError(
      'unknown_model',
      `The model ${JSON.stringify(name)} is not in the catalog: ${names}`,
      {
        errors: [{ field: 'model', message: `must be one of: ${names}` }],
      },
    );
  }
}

/**
 * Reads the catalog and the defaults of each model's folder. Whether weights are sound is found when they are loaded.
 * Processes that only name models run where no weights are, and ask for `files: 'unchecked'`.
 * @throws AtelierError `model_load_failed` that names the file and what is wrong with it
 */
export async function loadCatalog(
  config: Pick<Config, 'ATELIER_CATALOG' | 'ATELIER_MODELS_DIR'>,
  options: { files?: 'checked' | 'unchecked' } = {},
): Promise<Catalog> {
  const path = config.ATELIER_CATALOG;
  const file = await readJson(path, CatalogFile);
  const models = await Promise.all(
    file.models.map(async (model): Promise<ModelEntry> => {
      const folder = join(config.ATELIER_MODELS_DIR, model.folder);
      const files = { ...DEFAULT_FILES, ...definedOf(model.files ?? {}) };
      const at = (name: keyof typeof files): Promise<string> =>
        options.files === 'unchecked'
          ? Promise.resolve(join(folder, files[name]))
          : existing(join(folder, files[name]), model.name);
      return {
        name: model.name,
        title: model.title,
        family: model.family,
        license: model.license,
        quantize: model.quantize ?? null,
        defaults: await defaultsOf(model.name, folder, definedOf(model.defaults ?? {})),
        files: {
          transformer: await at('transformer'),
          vae: await at('vae'),
          textEncoder: await at('text_encoder'),
          textEncoder2: await at('text_encoder_2'),
          tokenizer: await at('tokenizer'),
          tokenizer2: await at('tokenizer_2'),
          scheduler: await at('scheduler'),
        },
      };
    }),
  );
  return new Catalog(models);
}

async function defaultsOf(
  name: string,
  folder: string,
  given: Partial<ModelDefaults>,
): Promise<ModelDefaults> {
  const complete = Defaults.safeParse(given);
  if (complete.success) return complete.data;
  const indexPath = join(folder, 'model_index.json');
  const index = await readJson(indexPath, ModelIndex);
  const merged = Defaults.safeParse({
    width: index.default_size,
    height: index.default_size,
    steps: index.default_steps,
    guidance: index.default_guidance,
    max_sequence_length: index.max_sequence_length,
    ...given,
  });
  if (merged.success) return merged.data;
  throw new AtelierError(
    'model_load_failed',
    `The model ${name} has no usable defaults, neither in the catalog nor in ${indexPath}: ${describe(merged.error)}`,
  );
}

async function existing(path: string, model: string): Promise<string> {
  try {
    await stat(path);
    return path;
  } catch (cause) {
    throw new AtelierError('model_load_failed', `The model ${model} needs ${path}, which is not there`, {
      cause,
    });
  }
}

async function readJson<Schema extends z.ZodType>(path: string, schema: Schema): Promise<z.infer<Schema>> {
  let json: unknown;
  try {
    json = JSON.parse(await readFile(path, 'utf8'));
  } catch (cause) {
    throw new AtelierError('model_load_failed', `${path} cannot be read: ${String(cause)}`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new AtelierError('model_load_failed', `${path} is not valid: ${describe(parsed.error)}`);
}

function describe(error: z.ZodError): string {
  return error.issues.map((issue) => `${issue.path.join('.') || 'file'}: ${issue.message}`).join('; ');
}

/** Without the members that are undefined, so that a spread does not erase a default. */
function definedOf<T extends object>(object: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
