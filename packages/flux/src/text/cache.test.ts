import { openTiny } from '../../../../test/golden/support.ts';
import { GraphSession } from '../runtime/session.ts';
import { PromptCache } from './cache.ts';
import { TextEncoder } from './encoder.ts';

const made = (length: number) => async (): Promise<Float32Array> => new Float32Array(length);

test('the least recently used results go when the bytes are passed', async () => {
  const cache = new PromptCache(3 * 402);
  const [a, b, c] = [
    await cache.get('a', made(100)),
    await cache.get('b', made(100)),
    await cache.get('c', made(100)),
  ];
  expect(await cache.get('a', made(1))).toBe(a);
  await cache.get('d', made(100));
  expect(await cache.get('a', made(1))).toBe(a);
  expect(await cache.get('c', made(1))).toBe(c);
  expect(await cache.get('b', made(1))).not.toBe(b);
});

test('a result above the bound is given and not kept', async () => {
  const cache = new PromptCache(100);
  expect(await cache.get('a', made(50))).toHaveLength(50);
  expect(await cache.get('a', made(2))).toHaveLength(2);
});

test('a failure is thrown and not remembered', async () => {
  const cache = new PromptCache(100);
  await expect(cache.get('a', () => Promise.reject(new Error('once')))).rejects.toThrow('once');
  expect(await cache.get('a', made(2))).toHaveLength(2);
});

describe('the text encoder', () => {
  let encoder: TextEncoder;
  let runs: jest.SpyInstance;
  let clip: ReturnType<Awaited<ReturnType<typeof openTiny>>['locator']>;
  beforeAll(async () => {
    const { files, maxSequenceLength, opened, locator } = await openTiny('tiny-dev');
    clip = locator('clip');
    encoder = await TextEncoder.load(
      {
        clip: { spec: opened.clip.spec, locator: clip, tokenizer: files.tokenizer },
        t5: { spec: opened.t5.spec, locator: locator('t5'), tokenizer: files.tokenizer2 },
        maxSequenceLength,
      },
      {},
    );
    runs = jest.spyOn(GraphSession.prototype, 'run');
  });
  beforeEach(() => runs.mockClear());
  afterAll(async () => {
    runs.mockRestore();
    await encoder.release();
  });

  test('a prompt that was encoded runs no session and has the same values', async () => {
    const first = await encoder.encode('a fox');
    const before = { text: first.text.slice(), pooled: first.pooled.slice() };
    expect(runs).toHaveBeenCalledTimes(2);
    const other = await encoder.encode('a fox in snow');
    expect(runs).toHaveBeenCalledTimes(4);
    expect(other.pooled).not.toEqual(first.pooled);
    expect(await encoder.encode('a fox')).toEqual(before);
    expect(runs).toHaveBeenCalledTimes(4);
  });

  test('another CLIP encodes for itself and shares what T5 said', async () => {
    const { text } = await encoder.encode('a red house');
    const styled = await encoder.withClip(clip, {});
    runs.mockClear();
    expect((await styled.encode('a red house')).text).toBe(text);
    expect(runs).toHaveBeenCalledTimes(1);
    await styled.encode('a red house');
    expect(runs).toHaveBeenCalledTimes(1);
    await styled.releaseClip();
  });
});
