import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { GenerationRequest, loadCatalog, resolveInput } from '@atelier/shared';
import { EngineProcess, type EngineRequest, type Style } from '@atelier/flux';
import sharp from 'sharp';
import type { GenerateOptions, Generated } from './commands/generate.ts';
import { CliError } from './errors.ts';
import { settings } from './settings.ts';
import type { StyleArgument } from './style.ts';

/** Makes one picture without a studio: the same engine, with the catalog and defaults that a studio would use. */
export async function generateLocally(
  prompt: string,
  options: GenerateOptions,
  onProgress: (fraction: number, note: string) => void,
): Promise<Generated> {
  const config = settings();
  const catalog = await loadCatalog(config);
  const { model, seed, steps, guidance, width, height } = options;
  const parsed = GenerationRequest.safeParse({ prompt, model, seed, steps, guidance, width, height });
  if (!parsed.success) {
    const errors = parsed.error.issues.map(({ path, message }) => ({ field: path.join('.'), message }));
    throw new CliError('validation_failed', 'The request is not valid', { errors });
  }
  const input = resolveInput(parsed.data, catalog);
  const entry = catalog.get(input.model);
  const request: EngineRequest = {
    prompt: input.prompt,
    width: input.width,
    height: input.height,
    steps: input.steps,
    guidance: input.guidance,
    seed: input.seed,
    ...(options.style ? { styles: await stylesOf(options.style) } : {}),
  };

  const engine = EngineProcess.spawn();
  try {
    onProgress(0, `loading ${entry.name}`);
    const threads = config.ATELIER_ENGINE_THREADS;
    await engine.load({
      name: entry.name,
      files: entry.files,
      cacheDir: config.ATELIER_CACHE_DIR,
      maxSequenceLength: entry.defaults.max_sequence_length,
      ...(threads === undefined ? {} : { threads }),
    });
    const image = await engine.generate(request, {
      onProgress: ({ phase, step, steps: all }) =>
        onProgress(step / all, phase === 'denoise' ? `step ${step}/${all}` : phase),
    });
    const raw = { width: image.width, height: image.height, channels: 3 as const };
    return {
      data: await sharp(image.pixels, { raw }).png().toBuffer(),
      width: image.width,
      height: image.height,
      seed: image.seed,
      ms: image.timings.total_ms,
      report: { width: image.width, height: image.height, seed: image.seed, timings: image.timings },
    };
  } finally {
    await engine.close();
  }
}

/** Without a studio there are no names: styles are files. */
async function stylesOf(styles: readonly StyleArgument[]): Promise<Style[]> {
  return Promise.all(
    styles.map(async ({ lora, weight = 1 }) => {
      const file = resolve(lora);
      const info = await stat(file).catch((cause: unknown) => {
        throw new CliError('file_missing', `With --local a style is a .safetensors file; ${lora} is none`, {
          cause,
        });
      });
      return { file, key: `${file}:${info.mtimeMs}:${info.size}`, weight };
    }),
  );
}
