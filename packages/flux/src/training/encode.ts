import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelFiles, OpenedModel } from '../checkpoint/model-files.ts';
import { PATCH } from '../sampling/latents.ts';
import type { EncodedText } from '../text/encoder.ts';
import { throwIfCanceled } from './data/canceled.ts';
import { modelEncoders } from './data/encoders.ts';
import { prepareItems, type PreparedDataset } from './data/items.ts';
import type { TrainEvent, TrainRequest } from './train.ts';
import type { Workplace } from './workplace.ts';

/** A dataset as latents and embeddings, and the embeddings of the prompts that samples are drawn from. */
export interface EncodedDataset extends PreparedDataset {
  prompts: Map<string, EncodedText>;
}

/** Encodes all that a training will need of the encoders; they are gone when it returns. */
export async function encode(
  request: TrainRequest,
  opened: OpenedModel,
  workplace: Workplace,
  onEvent: (event: TrainEvent) => void,
  signal?: AbortSignal,
): Promise<EncodedDataset> {
  const { model, resolution, squareCrop, triggerWord, skipBad, validationEvery } = request;
  const { files, maxSequenceLength } = model;
  const { text, vae } = await workplace.encoders();
  try {
    const data = await prepareItems(request.dataset, {
      resolution,
      multiple: opened.vae.spec.scaleFactor * PATCH,
      cacheDir: join(model.cacheDir, 'training'),
      modelKey: await modelKey(files, maxSequenceLength, workplace.provider),
      encoders: modelEncoders(vae, text),
      onProgress: (progress) => onEvent({ type: 'preparing', ...progress }),
      ...(squareCrop === undefined ? {} : { squareCrop }),
      ...(triggerWord === undefined ? {} : { triggerWord }),
      ...(skipBad === undefined ? {} : { skipBad }),
      ...(validationEvery === undefined ? {} : { validationEvery }),
      ...(signal ? { signal } : {}),
    });
    const prompts = new Map<string, EncodedText>();
    const sampled = workplace.encodesPrompts ? (request.samples?.prompts ?? []) : [];
    for (const prompt of sampled) {
      throwIfCanceled(signal);
      prompts.set(prompt, await text.encode(prompt));
    }
    return { ...data, prompts };
  } finally {
    await text.release();
    await vae.release();
  }
}

/**
 * Tells apart what encodings depend on: the files of the encoders by path, size and time, T5's length, and where they
 * were computed.
 */
async function modelKey(files: ModelFiles, maxSequenceLength: number, provider: string): Promise<string> {
  const parts = [files.vae, files.textEncoder, files.textEncoder2, files.tokenizer, files.tokenizer2];
  const seen = await Promise.all(
    parts.map(async (path) => [path, (await stat(path)).size, (await stat(path)).mtimeMs]),
  );
  return createHash('sha256')
    .update(JSON.stringify([seen, maxSequenceLength, provider]))
    .digest('hex');
}
