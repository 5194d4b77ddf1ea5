import { preferredWait } from './prefer.ts';

test.each([
  [undefined, 0],
  ['', 0],
  ['respond-async', 0],
  ['wait=10', 10],
  ['respond-async, wait=10', 10],
  ['Wait = "10"; reason=test', 10],
  ['wait=5, wait=20', 5],
  ['wait=0', 0],
  ['wait=3600', 60],
  ['wait=-1', 0],
  ['wait=1.5', 0],
  ['wait=soon', 0],
  ['await=10', 0],
])('Prefer: %s waits %d s', (header, seconds) => {
  expect(preferredWait(header)).toBe(seconds);
});
