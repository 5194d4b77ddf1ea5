import { readFile } from 'node:fs/promises';
import { join } from 'node:path';

const START = '<|startoftext|>';
const END = '<|endoftext|>';

/**
 * The tokenizer.json that transformers would write for a folder with CLIP's vocab.json and merges.txt (the form in
 * which FLUX.1 ships its first tokenizer), or null when the folder has no such files.
 * Source: `CLIPConverter` of transformers.
 */
export async function clipTokenizerDefinition(folder: string): Promise<object | null> {
  const [vocabText, mergesText] = await Promise.all(
    ['vocab.json', 'merges.txt'].map((name) => readFile(join(folder, name), 'utf8').catch(() => null)),
  );
  if (vocabText == null || mergesText == null) return null;
  const vocab = JSON.parse(vocabText) as Record<string, number>;
  const merges = mergesText
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#version'))
    .map((line) => line.split(' '));
  const special = (content: string) => ({ id: vocab[content], content, special: true, normalized: false });
  return {
    version: '1.0',
    added_tokens: [special(START), special(END)],
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'NFC' },
        { type: 'Replace', pattern: { Regex: '\\s+' }, content: ' ' },
        { type: 'Lowercase' },
      ],
    },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        {
          type: 'Split',
          pattern: {
            Regex: String.raw`<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`,
          },
          behavior: 'Removed',
          invert: true,
        },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    post_processor: {
      type: 'RobertaProcessing',
      sep: [END, vocab[END]],
      cls: [START, vocab[START]],
      trim_offsets: false,
      add_prefix_space: false,
    },
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: END,
      continuing_subword_prefix: '',
      end_of_word_suffix: '</w>',
      fuse_unk: false,
      vocab,
      merges,
    },
  };
}
