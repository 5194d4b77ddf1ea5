import {
  FluxError,
  type Lora,
  type LoraTarget,
  loraTarget,
  openModel,
  readLora,
  writeLora,
} from '@atelier/flux/lora';
import type { ModelPaths } from '@atelier/shared';
import type { FileAnswer, FileFacts, FileRequest } from './file-protocol.ts';

/**
 * A process of its own, because reading a LoRA takes seconds of a processor and twice its size in memory: neither may
 * come from the API, which goes on answering meanwhile and outlives a file that does not fit.
 */
process.once('message', (request: FileRequest) => {
  void answer(request).then((result) => process.send?.(result, () => process.disconnect()));
});

// Also when the API dies: nobody waits for the answer then.
process.once('disconnect', () => process.exit());

async function answer(request: FileRequest): Promise<FileAnswer> {
  try {
    return { ok: true, facts: await perform(request) };
  } catch (error) {
    if (!(error instanceof FluxError)) return { ok: false, refused: false, message: String(error) };
    // The path is of this machine, and the client knows which file it sent.
    const message = error.message.replaceAll(request.file, 'the file');
    return {
      ok: false,
      refused: error.code === 'lora_invalid' || error.code === 'lora_unsupported',
      message,
    };
  }
}

async function perform(request: FileRequest): Promise<FileFacts | null> {
  switch (request.task) {
    case 'check': {
      const target = await targetOf(request.model);
      return factsOf(await readLora(request.file, target), target !== null);
    }
    case 'convert': {
      await writeLora(request.target, await readLora(request.file, null), request.format, request.metadata);
      return null;
    }
    default: {
      const never: never = request;
      throw new Error(`unknown task ${String(never)}`);
    }
  }
}

/** null when the model's files are not on this machine, as where only the API runs. */
async function targetOf(files: ModelPaths): Promise<LoraTarget | null> {
  try {
    const { transformer, clip } = await openModel(files);
    return loraTarget({ transformer: transformer.spec, clip: clip.spec });
  } catch (error) {
    if (error instanceof FluxError && error.code === 'checkpoint_missing') return null;
    throw error;
  }
}

function factsOf(lora: Lora, compared: boolean): FileFacts {
  const ranks = [lora.transformer, lora.clip].flatMap((part) => [...part.values()].map(({ rank }) => rank));
  return {
    dialects: [...lora.dialects],
    // A file of zeros changes nothing, and has no rank.
    rank: ranks.length === 0 ? { min: 0, max: 0 } : { min: Math.min(...ranks), max: Math.max(...ranks) },
    modules: { transformer: lora.transformer.size, text_encoder: lora.clip.size },
    warnings: [...lora.warnings],
    compared,
  };
}
