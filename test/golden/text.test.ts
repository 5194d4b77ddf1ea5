import { TextEncoder } from '../../packages/flux/src/text/encoder.ts';
import { TextTokenizer } from '../../packages/flux/src/text/tokenizer.ts';
import { goldens, maxAbsError, openTiny, rms, TINY_MODELS, TOLERANCE } from './support.ts';

interface Tokens {
  prompt: string;
  clip: number[];
  t5: number[];
}

describe.each(TINY_MODELS)('%s', (name) => {
  test('token ids are those of the reference tokenizers', async () => {
    const { files, maxSequenceLength, opened } = await openTiny(name);
    const tokens = (await goldens(name)).json['tokens'] as Tokens[];
    expect(tokens.length).toBeGreaterThan(8);
    const clip = await TextTokenizer.open(files.tokenizer);
    const t5 = await TextTokenizer.open(files.tokenizer2);
    for (const { prompt, ...expected } of tokens) {
      const found = {
        clip: pad(
          clip.encode(prompt, opened.clip.spec.maxPositions),
          expected.clip.length,
          expected.clip.at(-1)!,
        ),
        t5: pad(t5.encode(prompt, maxSequenceLength), expected.t5.length, opened.t5.spec.padTokenId),
      };
      expect({ prompt, ...found }).toEqual({ prompt, ...expected });
    }
  });

  test('CLIP pooled output and T5 hidden states are those of transformers', async () => {
    const { files, maxSequenceLength, opened, locator } = await openTiny(name);
    const golden = await goldens(name);
    const tokens = golden.json['tokens'] as Tokens[];
    const encoder = await TextEncoder.load(
      {
        clip: { spec: opened.clip.spec, locator: locator('clip'), tokenizer: files.tokenizer },
        t5: { spec: opened.t5.spec, locator: locator('t5'), tokenizer: files.tokenizer2 },
        maxSequenceLength,
      },
      {},
    );
    const encoded = golden.json['encoded'] as number[];
    expect(encoded.length).toBeGreaterThan(0);
    for (const index of encoded) {
      const { text, pooled } = await encoder.encode(tokens[index]!.prompt);
      const expectedText = await golden.get(`t5/${index}/last_hidden_state`);
      const expectedPooled = await golden.get(`clip/${index}/pooled`);
      expect(rms(expectedText.data)).toBeGreaterThan(0.3);
      expect(maxAbsError(text, expectedText.data)).toBeLessThan(TOLERANCE);
      expect(maxAbsError(pooled, expectedPooled.data)).toBeLessThan(TOLERANCE);
    }
    await encoder.release();
  });
});

function pad(ids: number[], length: number, padding: number): number[] {
  return [...ids, ...Array.from({ length: length - ids.length }, () => padding)];
}
