import { type ExecFileException, execFile } from 'node:child_process';
import { join } from 'node:path';
import { type TestApi, startTestApi } from '../support/api.ts';

const PROJECT = join(import.meta.dirname, '../..');

let api: TestApi;
beforeAll(async () => {
  api = await startTestApi();
});
afterAll(() => api.close());

function atelier(
  key: string | null,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = {
    PATH: process.env['PATH'],
    ATELIER_URL: api.url,
    ...(key === null ? {} : { ATELIER_API_KEY: key }),
  };
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [join(PROJECT, 'apps/cli/src/main.ts'), ...args],
      { env },
      (error: ExecFileException | null, stdout, stderr) =>
        resolve({ code: error ? Number(error.code) : 0, stdout, stderr }),
    );
  });
}

test('a scope that there is not is refused with those that there are', async () => {
  const { code, stderr } = await atelier(null, 'keys', 'create', '--name', 'x', '--scope', 'write');
  expect(code).toBe(1);
  expect(stderr).toMatch(/loras:write/);
});

test('keys are made, used from ATELIER_API_KEY, listed and revoked', async () => {
  expect(await atelier(null, 'keys')).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^no keys yet/),
  });
  const refused = await atelier(null, 'keys', 'create', '--name', 'ci');
  expect(refused).toMatchObject({
    code: 1,
    stdout: '',
    stderr: expect.stringMatching(/scope admin.*\(conflict\)/),
  });

  // Nothing but the key is on stdout.
  const admin = await atelier(null, 'keys', 'create', '--name', 'me', '--scope', 'admin');
  expect(admin).toMatchObject({ code: 0, stdout: expect.stringMatching(/^atl_\w{8}_\w{40}\n$/) });
  const key = admin.stdout.trim();
  expect(await atelier(null, 'keys')).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/ATELIER_API_KEY.*\(unauthorized\)/),
  });

  const words = '--name ci --tenant acme --scope read --scope train --expires 2099-01-31T00:00:00Z'.split(
    ' ',
  );
  const made = await atelier(key, 'keys', 'create', ...words);
  expect(made.stderr).toContain('of tenant acme with read, train');
  const theirs = made.stdout.trim();
  expect(await atelier(theirs, 'models')).toMatchObject({ code: 0, stderr: '' });
  const lacking = await atelier(theirs, 'loras', 'remove', 'ink');
  expect(lacking).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/needs loras:write .*\(forbidden\)/),
  });

  const row = new RegExp(
    `^(key_\\w+) +ci +acme +read train +${theirs.slice(0, 12)}…${theirs.slice(-4)} +20[\\d-]+ [\\d:]+ +valid until 2099-01-31 00:00$`,
    'm',
  );
  const id = row.exec((await atelier(key, 'keys', 'list', '--tenant', 'acme')).stdout)?.[1];
  expect(id).toBeDefined();
  expect((await atelier(key, 'keys', 'revoke', id!)).stdout).toMatch(
    new RegExp(`^revoked ${id} \\(ci, atl_`),
  );
  expect(await atelier(theirs, 'models')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('was revoked at'),
  });
  expect((await atelier(key, 'keys')).stdout).toMatch(/ revoked 20[\d-]+ [\d:]+$/m);
});
