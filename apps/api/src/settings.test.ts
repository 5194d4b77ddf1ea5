import { isLoopback, loadSettings } from './settings.ts';

test.each(['localhost', '127.0.0.1', '127.1.2.3', '::1'])('%s is this machine', (host) => {
  expect(isLoopback(host)).toBe(true);
});

test.each(['0.0.0.0', '::', '10.0.0.1', '127.0.0.1.example.com', '127.0.0', 'example.com', ''])(
  '%j is not only this machine',
  (host) => {
    expect(isLoopback(host)).toBe(false);
  },
);

test('keys are split and trimmed; none are needed on loopback', () => {
  const keys = 'a'.repeat(16) + ' , ' + 'b'.repeat(20) + ',';
  expect(loadSettings('0.0.0.0', { ATELIER_API_KEYS: keys }).keys).toEqual(['a'.repeat(16), 'b'.repeat(20)]);
  expect(loadSettings('127.0.0.1', {}).keys).toEqual([]);
});

test('a key that can be guessed is refused, and not repeated in the message', () => {
  const load = () => loadSettings('127.0.0.1', { ATELIER_API_KEYS: 'hunter2' });
  expect(load).toThrow('ATELIER_API_KEYS: each key needs at least 16 characters');
  expect(load).not.toThrow('hunter2');
});

test('limits of datasets have bounds; what breaks them is named', () => {
  expect(loadSettings('127.0.0.1', { ATELIER_MAX_DATASET_IMAGES: '7' }).dataset).toEqual({
    maxBytes: 2 * 2 ** 30,
    maxImages: 7,
    maxImageBytes: 32 * 2 ** 20,
    maxRatio: 100,
  });
  const broken = {
    ATELIER_MAX_DATASET_BYTES: '1e18',
    ATELIER_MAX_DATASET_IMAGES: '0',
    ATELIER_MAX_DATASET_IMAGE_BYTES: 'many',
    ATELIER_MAX_ARCHIVE_RATIO: '5000',
  };
  for (const name of Object.keys(broken))
    expect(() => loadSettings('127.0.0.1', broken)).toThrow(`${name}: `);
});
