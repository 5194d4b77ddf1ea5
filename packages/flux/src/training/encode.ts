import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { ModelFiles, OpenedModel } from '../checkpoint/model-files.ts';
import type { PlacedModel } from '../runtime/placement.ts';
import type { SessionOptions } from '../runtime/session.ts';
import { PATCH } from '../sampling/latents.ts';
import { type EncodedText, TextEncoder } from '../text/encoder.ts';
import { Vae } from '../vae/vae.ts';
import { throwIfCanceled } from './data/canceled.ts';
import { modelEncoders } from './data/encoders.ts';
import { prepareItems, type PreparedDataset } from './data/items.ts';
import type { TrainEvent, TrainRequest } from './train.ts';

/** A dataset as latents and embeddings, and the embeddings of the prompts that samples are drawn from. */
export interface EncodedDataset extends PreparedDataset {
  prompts: Map<string, EncodedText>;
}

/** Encodes all that a training will need of the encoders; they are gone when it returns. */
export async function encode(
  request: TrainRequest,
  opened: OpenedModel,
  placed: PlacedModel,
  session: SessionOptions,
  onEvent: (event: TrainEvent) => void,
  signal?: AbortSignal,
): Promise<EncodedDataset> {
  const { model, resolution, squareCrop, triggerWord, skipBad, validationEvery } = request;
  const { files, maxSequenceLength } = model;
  const text = await TextEncoder.load(
    {
      clip: { spec: opened.clip.spec, locator: placed.clip, tokenizer: files.tokenizer },
      t5: { spec: opened.t5.spec, locator: placed.t5, tokenizer: files.tokenizer2 },
      maxSequenceLength,
    },
    session,
  );
  const vae = await Vae.load(opened.vae.spec, placed.vae, session);
  try {
    const data = await prepareItems(request.dataset, {
      resolution,
      multiple: opened.vae.spec.scaleFactor * PATCH,
      cacheDir: join(model.cacheDir, 'training'),
      modelKey: await modelKey(files, maxSequenceLength),
      encoders: modelEncoders(vae, text),
      onProgress: (progress) => onEvent({ type: 'preparing', ...progress }),
      ...(squareCrop === undefined ? {} : { squareCrop }),
      ...(triggerWord === undefined ? {} : { triggerWord }),
      ...(skipBad === undefined ? {} : { skipBad }),
      ...(validationEvery === undefined ? {} : { validationEvery }),
      ...(signal ? { signal } : {}),
    });
    const prompts = new Map<string, EncodedText>();
    for (const prompt of request.samples?.prompts ?? []) {
      throwIfCanceled(signal);
      prompts.set(prompt, await text.encode(prompt));
    }
    return { ...data, prompts };
  } finally {
    await text.release();
    await vae.release();
  }
}

/** Tells apart what encodings depend on: the files of the encoders by path, size and time, and T5's length. */
async function modelKey(files: ModelFiles, maxSequenceLength: number): Promise<string> {
  const parts = [files.vae, files.textEncoder, files.textEncoder2, files.tokenizer, files.tokenizer2];
  const seen = await Promise.all(
    parts.map(async (path) => [path, (await stat(path)).size, (await stat(path)).mtimeMs]),
  );
  return createHash('sha256')
    .update(JSON.stringify([seen, maxSequenceLength, 'cpu']))
    .digest('hex');
}
