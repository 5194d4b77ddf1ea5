import { AtelierError, GenerationRequest } from '@atelier/shared';
import { z } from 'zod';
import { editDistance, suggest } from './suggest.ts';
import { invalid, validate } from './validate.ts';

function messageOf(schema: z.ZodType, value: unknown): string {
  try {
    validate(schema, value);
  } catch (error) {
    if (error instanceof AtelierError && error.code === 'validation_failed') return error.message;
    throw error;
  }
  throw new Error('the value was accepted');
}

test('a pattern is told in the words of its schema', () => {
  const schema = z.object({ name: z.string().regex(/^a$/, { error: 'allowed is the letter a' }) });
  expect(messageOf(schema, { name: 'b' })).toBe('name: found "b", allowed is the letter a');
  expect(messageOf(schema, { name: 1 })).toBe('name: found 1, allowed is text');
});

const FIELDS =
  'prompt, model, styles, width, height, steps, guidance, seed, count, format, image, priority, webhook, metadata';

test.each<[unknown, string]>([
  [{}, 'prompt: found nothing, allowed is text of at most 4096 characters'],
  [{ prompt: null }, 'prompt: found null, allowed is text of at most 4096 characters'],
  [
    { prompt: 'a'.repeat(100_000) },
    'prompt: found 100000 characters, allowed is text of at most 4096 characters',
  ],
  [{ prompt: 'x', steps: 0 }, 'steps: found 0, allowed are whole numbers from 1 to 50'],
  [{ prompt: 'x', steps: 51 }, 'steps: found 51, allowed are whole numbers from 1 to 50'],
  [{ prompt: 'x', steps: 1.5 }, 'steps: found 1.5, allowed are whole numbers from 1 to 50'],
  [{ prompt: 'x', steps: '20' }, 'steps: found "20", allowed are whole numbers from 1 to 50'],
  [
    { prompt: 'x', width: 100 },
    'width: found 100, allowed are multiples of 16 from 64 to 2048; nearest: 96 and 112',
  ],
  [{ prompt: 'x', height: 4096 }, 'height: found 4096, allowed are multiples of 16 from 64 to 2048'],
  [
    { prompt: 'x', height: 70 },
    'height: found 70, allowed are multiples of 16 from 64 to 2048; nearest: 64 and 80',
  ],
  [
    { prompt: 'x', seed: 2 ** 53 },
    'seed: found 9007199254740992, allowed are whole numbers from -1 to 9007199254740991',
  ],
  [{ prompt: 'x', format: 'gif' }, 'format: found "gif", allowed are png, jpeg, webp'],
  [{ prompt: 'x', step: 5 }, `step: unknown field; did you mean steps? allowed are ${FIELDS}`],
  [{ prompt: 'x', nonsense: 5 }, `nonsense: unknown field; allowed are ${FIELDS}`],
  [JSON.parse('{"prompt":"x","__proto__":{}}'), `__proto__: unknown field; allowed are ${FIELDS}`],
  [
    { prompt: 'x', styles: [{ lora: 'ink', weight: 9 }] },
    'styles[0].weight: found 9, allowed are numbers from -4 to 4',
  ],
  [{ prompt: 'x', styles: 'ink' }, 'styles: found "ink", allowed is a list of at most 8 items'],
  [
    { prompt: 'x', image: { file: '', strength: 0 } },
    'image.file: found 0 characters, allowed is text of at least 1 character; ' +
      'image.strength: found 0, allowed are numbers above 0, up to 1',
  ],
  [
    { prompt: 'x', metadata: { a: 1, ['k'.repeat(65)]: 'v' } },
    'metadata.a: found 1, allowed is text of at most 512 characters; ' +
      `metadata["${'k'.repeat(64)}"]: found a name of 65 characters, allowed is text of at most 64 characters`,
  ],
  [[], `body: found a list of length 0, allowed is an object with the fields ${FIELDS}`],
  ['text', `body: found "text", allowed is an object with the fields ${FIELDS}`],
  [undefined, `body: found nothing, allowed is an object with the fields ${FIELDS}`],
])('%j is refused with a message that says what is allowed', (value, message) => {
  expect(messageOf(GenerationRequest, value)).toBe(message);
});

test('every wrong field is reported once, with its path', () => {
  let error: unknown;
  try {
    validate(GenerationRequest, { steps: 99, seed: 2 ** 60, width: 1 });
  } catch (caught) {
    error = caught;
  }
  expect((error as AtelierError).errors.map((entry) => entry.field)).toEqual([
    'prompt',
    'width',
    'steps',
    'seed',
  ]);
});

test('a query is described by what was sent, not by what coercion made of it', () => {
  const query = z.strictObject({ limit: z.coerce.number().int().min(1).max(100) });
  expect(messageOf(query, { limit: 'ten' })).toBe(
    'limit: found "ten", allowed are whole numbers from 1 to 100',
  );
});

test('a body of a million mistakes gets a short answer', () => {
  const body = Object.fromEntries(Array.from({ length: 10_000 }, (_, i) => [`f${i}`, i]));
  const found = messageOf(GenerationRequest, body);
  expect(found.length).toBeLessThan(8_000);
  expect(messageOf(GenerationRequest, { prompt: 'x', format: 'z'.repeat(1_000_000) }).length).toBeLessThan(
    200,
  );
});

test('errors of later checks read the same', () => {
  expect(invalid([{ field: 'image.file', message: 'found a PDF' }]).message).toBe('image.file: found a PDF');
});

test('suggestions come only for what is close', () => {
  expect(editDistance('kitten', 'sitting')).toBe(3);
  expect(editDistance('', 'abc')).toBe(3);
  expect(editDistance('stpes', 'steps')).toBe(1);
  expect(suggest('Prompt', ['prompt', 'steps'])).toBe('prompt');
  expect(suggest('stpes', ['styles', 'steps'])).toBe('steps');
  expect(suggest('heigth', ['width', 'height'])).toBe('height');
  expect(suggest('cfg_scale', ['guidance', 'steps'])).toBeUndefined();
  expect(suggest('x'.repeat(100_000), ['steps'])).toBeUndefined();
});
