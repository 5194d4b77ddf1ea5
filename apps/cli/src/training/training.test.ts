import type { TrainingMetrics } from '@atelier/shared';
import { sampleName } from './follow.ts';
import { TrainingNewsReader } from './news.ts';
import { lossOf, useCommand } from './result.ts';
import { smoothed } from './smoothing.ts';

const EMPTY: TrainingMetrics = { steps: [], validation: [], checkpoints: [], samples: [], skipped: [] };
const sample = {
  epoch: 1,
  step: 48,
  index: 0,
  prompt: 'a fox',
  seed: 42,
  width: 64,
  height: 64,
  sha256: 'a',
};

test('the smoothed loss starts at the first value and follows later ones slowly', () => {
  expect(smoothed([])).toBeNull();
  expect(smoothed([3])).toBeCloseTo(3, 12);
  expect(smoothed([2, 2, 2, 2])).toBeCloseTo(2, 12);
  // (0.9 * 0.1 * 1 + 0.1 * 3) / (1 - 0.81)
  expect(smoothed([1, 3])).toBeCloseTo(0.39 / 0.19, 12);
  const step = smoothed([...Array<number>(100).fill(1), ...Array<number>(10).fill(0)])!;
  expect(step).toBeCloseTo(0.9 ** 10, 4);
});

test('news come once and in the order of epochs, the loss of an epoch before its pictures and its version', () => {
  const reader = new TrainingNewsReader();
  const first = { ...EMPTY, validation: [{ epoch: 0, loss: 0.3 }] };
  expect(reader.take(first)).toEqual([{ type: 'validation', epoch: 0, loss: 0.3 }]);
  const second = {
    ...first,
    validation: [...first.validation, { epoch: 1, loss: 0.2 }, { epoch: 2, loss: 0.1 }],
    samples: [sample],
    checkpoints: [{ epoch: 1, step: 48, lora: 'ink@1' }],
  };
  const news = reader.take(second);
  expect(news).toEqual([
    { type: 'validation', epoch: 1, loss: 0.2 },
    { type: 'sample', epoch: 1, sample },
    { type: 'checkpoint', epoch: 1, step: 48, lora: 'ink@1', validationLoss: 0.2 },
    { type: 'validation', epoch: 2, loss: 0.1 },
  ]);
  expect(reader.take(second)).toEqual([]);
  reader.forget(news[1]!);
  expect(reader.take(second)).toEqual([{ type: 'sample', epoch: 1, sample }]);
  expect(reader.take({ ...second, samples: [{ ...sample, sha256: 'b' }] })).toHaveLength(1);
});

test('the loss is told from first to last, that of pictures held back where there are two', () => {
  const step = { epoch: 1, learning_rate: 1, gradient_norm: 1 };
  const steps = [
    { ...step, step: 1, loss: 0.5 },
    { ...step, step: 2, loss: 0.4 },
  ];
  expect(lossOf(EMPTY)).toBeNull();
  expect(lossOf({ steps, validation: [{ epoch: 0, loss: 0.3 }] })).toBe('loss 0.5000 to 0.4000');
  const validation = [
    { epoch: 0, loss: 0.3 },
    { epoch: 1, loss: 0.21 },
  ];
  expect(lossOf({ steps, validation })).toBe('validation loss 0.3000 to 0.2100');
});

test('the command that uses a style has its trigger word once, and survives a shell', () => {
  const use = (sample_prompts: string[], trigger_word?: string) =>
    useCommand('ink@1', { sample_prompts, trigger_word });
  expect(use([])).toBe('atelier generate "a lighthouse" --style ink@1');
  expect(use([], 'inkw')).toBe('atelier generate "inkw, a lighthouse" --style ink@1');
  expect(use(['a fox, inkw', 'a dog'], 'inkw')).toBe('atelier generate "a fox, inkw" --style ink@1');
  expect(use(['it\'s "$HOME"'])).toBe(`atelier generate 'it'\\''s "$HOME"' --style ink@1`);
});

test('sample files sort by step', () => {
  expect(sampleName({ step: 48, index: 0 })).toBe('step-000048-0.png');
});
