import { AddressRefused } from './address.ts';
import { outcomeOf, outcomeOfError, pauseMs } from './outcome.ts';

const answer = (status: number, rest: { location?: string; retryAfterS?: number } = {}) =>
  outcomeOf({ status, location: rest.location ?? null, retryAfterS: rest.retryAfterS ?? null });

test.each([
  [200, 'delivered', true],
  [204, 'delivered', true],
  [299, 'delivered', true],
  [300, 'retry', false],
  [308, 'retry', false],
  [400, 'retry', false],
  [404, 'retry', false],
  [410, 'stop', true],
  [429, 'retry', false],
  [500, 'retry', false],
  [503, 'retry', false],
] as const)('%i is %s', (status, result, healthy) => {
  expect(answer(status)).toMatchObject({ status, result, healthy });
});

test('the pause is that of the table, a fifth shorter or longer, or what the receiver asks for', () => {
  const table = [5, 30];
  expect(pauseMs(table, 1, 0, 0)).toBe(4_000);
  expect(pauseMs(table, 1, 0, 0.5)).toBe(5_000);
  expect(pauseMs(table, 2, 0, 1)).toBe(36_000);
  expect(pauseMs(table, 1, 60, 0.5)).toBe(60_000);
  expect(pauseMs(table, 3, 60)).toBeNull();
  expect(pauseMs([], 1, 0)).toBeNull();
});

test('nobody is waited for longer than a day', () => {
  expect(answer(503, { retryAfterS: 9_999_999 }).retryAfterS).toBe(86_400);
});

test('an address that is refused ends the delivery and says nothing of the endpoint', () => {
  const outcome = outcomeOfError(new AddressRefused('hooks.test', '10.0.0.1'));
  expect(outcome).toMatchObject({ result: 'stop', healthy: null, status: null });
  // What a name means in the network of the installation is not its clients' to know.
  expect(outcome.error).toBe('hooks.test leads to an address that is not public');
  expect(outcomeOfError(new Error('connect ECONNREFUSED'))).toMatchObject({
    result: 'retry',
    healthy: false,
  });
});
