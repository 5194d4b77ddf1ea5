import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

/** A gateway from S3 to a folder, with conditional writes; Apache-2.0. */
const MODULE = 'github.com/versity/versitygw/cmd/versitygw';
const VERSION = 'v1.8.0';

const CACHED = join(
  process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'),
  'atelier',
  `versitygw-${VERSION}`,
  'versitygw',
);
const READY_WITHIN_MS = 20_000;

const isOnPath = (program: string, ...args: string[]): boolean => {
  try {
    execFileSync(program, args, { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

/** Whether an S3 server can be had here: installed, built before, or built by the Go toolchain. */
export function canServeS3(): boolean {
  return existsSync(CACHED) || isOnPath('versitygw', '--version') || isOnPath('go', 'version');
}

/** The server's program; built into the cache folder when it is not there, which takes about a minute. */
export async function obtainS3Server(): Promise<string> {
  if (existsSync(CACHED)) return CACHED;
  if (isOnPath('versitygw', '--version')) return 'versitygw';
  await mkdir(join(CACHED, '..'), { recursive: true });
  const bin = await mkdtemp(join(CACHED, '..', 'building-'));
  try {
    const env = { ...process.env, GOBIN: bin, GOFLAGS: '-mod=mod', CGO_ENABLED: '0' };
    await promisify(execFile)('go', ['install', `${MODULE}@${VERSION}`], { env, cwd: bin, timeout: 280_000 });
    await rename(join(bin, 'versitygw'), CACHED);
  } finally {
    await rm(bin, { recursive: true, force: true });
  }
  return CACHED;
}

export interface TestS3 {
  readonly endpoint: string;
  readonly credentials: { accessKeyId: string; secretAccessKey: string };
  /** Makes an empty bucket. */
  bucket(): Promise<string>;
  stop(): Promise<void>;
}

/** A real S3 server of its own for a test file. */
export async function startTestS3(): Promise<TestS3> {
  const program = await obtainS3Server();
  const dir = await mkdtemp(join(tmpdir(), 'atelier-s3-'));
  const port = await freePort();
  const credentials = { accessKeyId: 'atelier-test', secretAccessKey: 'secret-of-the-test' };
  const server = spawn(program, ['--port', `127.0.0.1:${port}`, 'posix', dir], {
    env: {
      PATH: process.env['PATH'],
      ROOT_ACCESS_KEY: credentials.accessKeyId,
      ROOT_SECRET_KEY: credentials.secretAccessKey,
    },
    stdio: 'ignore',
  });
  // A test that fails before its cleanup must not keep jest from ending.
  server.unref();
  process.once('exit', () => server.kill('SIGKILL'));
  const endpoint = `http://127.0.0.1:${port}`;
  await ready(endpoint, server);
  let buckets = 0;
  return {
    endpoint,
    credentials,
    bucket: async () => {
      const name = `bucket-${++buckets}`;
      await mkdir(join(dir, name));
      return name;
    },
    stop: async () => {
      server.kill();
      if (server.exitCode === null && server.signalCode === null) await once(server, 'exit');
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function ready(endpoint: string, server: ChildProcess): Promise<void> {
  for (const deadline = Date.now() + READY_WITHIN_MS; Date.now() < deadline; await sleep(50)) {
    if (server.exitCode !== null) throw new Error(`the S3 server ended with ${server.exitCode}`);
    const answered = await fetch(endpoint).then(
      () => true,
      () => false,
    );
    if (answered) return;
  }
  throw new Error(`the S3 server did not answer within ${READY_WITHIN_MS} ms`);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}
