import { stripVTControlCharacters } from 'node:util';
import { slug } from './commands/generate.ts';
import { duration, shorten, table } from './output.ts';
import { formatLine } from './studio/log-line.ts';

test('durations are short', () => {
  expect([0.4, 843.2, 4213, 12_340, 59_960, 125_000].map(duration)).toEqual([
    '0 ms',
    '843 ms',
    '4.21 s',
    '12.3 s',
    '60.0 s',
    '2 min 05 s',
  ]);
});

test('a table has columns as wide as their widest cell', () => {
  const lines = stripVTControlCharacters(
    table(
      ['id', 'name'],
      [
        ['1', 'a'],
        ['200', 'b'],
      ],
    ),
  ).split('\n');
  expect(lines).toEqual(['id   name', '1    a', '200  b']);
});

test('a long text is cut to one line', () => {
  expect(shorten('a\n b', 10)).toBe('a b');
  expect(shorten('abcdefghij', 5)).toBe('abcd…');
});

test('a picture is named after its prompt', () => {
  expect(slug('A café, glossy style!')).toBe('a-cafe-glossy-style');
  expect(slug('../../etc')).toBe('etc');
  expect(slug('猫')).toBe('picture');
});

function shown(line: string, verbose: boolean): string | null {
  const text = formatLine('api', line, verbose);
  return text === null ? null : stripVTControlCharacters(text);
}

describe('log lines', () => {
  const info = JSON.stringify({
    level: 'info',
    time: '2026-01-01T00:00:00.000Z',
    msg: 'hello',
    job_id: 'gen_1',
  });
  const warning = JSON.stringify({ level: 'warn', time: '2026-01-01T00:00:00.000Z', msg: 'careful' });

  test('quiet shows warnings and what is no log line', () => {
    expect(shown(info, false)).toBeNull();
    expect(shown(warning, false)).toMatch(/^api {8}\[.*\] WARN: careful$/);
    expect(shown('Error: port is taken', false)).toBe('api        Error: port is taken');
  });

  test('verbose shows everything, with its fields on the same line', () => {
    expect(shown(info, true)).toMatch(/^api {8}\[.*\] INFO: hello \{"job_id":"gen_1"\}$/);
  });
});
