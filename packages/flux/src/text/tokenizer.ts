import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { FluxError } from '../errors.ts';
import { clipTokenizerDefinition } from './clip-tokenizer.ts';

/** Text to token ids, special tokens included, cut to a maximum as the reference tokenizers cut. */
export class TextTokenizer {
  readonly #tokenizer: Tokenizer;

  private constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /**
   * @param path a tokenizer.json, a folder that holds one, or a folder with CLIP's vocab.json and merges.txt
   * @throws FluxError checkpoint_missing or checkpoint_invalid
   */
  static async open(path: string): Promise<TextTokenizer> {
    const isFolder = await stat(path).then(
      (found) => found.isDirectory(),
      (cause: unknown) => {
        throw new FluxError('checkpoint_missing', `no tokenizer at ${path}`, { cause });
      },
    );
    const file = isFolder ? join(path, 'tokenizer.json') : path;
    try {
      const definition = (await readJson(file)) ?? (await clipTokenizerDefinition(path));
      if (!definition)
        throw new FluxError(
          'checkpoint_missing',
          `no tokenizer in ${path}: expected tokenizer.json, or vocab.json with merges.txt`,
        );
      const config = isFolder ? await readJson(join(path, 'tokenizer_config.json')) : null;
      return new TextTokenizer(new Tokenizer(definition, config ?? {}));
    } catch (cause) {
      if (cause instanceof FluxError) throw cause;
      throw new FluxError('checkpoint_invalid', `the tokenizer ${file} cannot be read: ${String(cause)}`, {
        cause,
      });
    }
  }

  /** Token ids of `text`, at most `maxLength`: a longer text loses its end, never its last special token. */
  encode(text: string, maxLength: number): number[] {
    const { ids } = this.#tokenizer.encode(text);
    return ids.length <= maxLength ? ids : [...ids.slice(0, maxLength - 1), ids.at(-1)!];
  }
}

async function readJson(file: string): Promise<object | null> {
  const text = await readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return null;
    throw cause;
  });
  return text === null ? null : (JSON.parse(text) as object);
}
