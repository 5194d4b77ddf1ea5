import { mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from './run.ts';
import { serverVersion } from './version.ts';

/** The server and those of its libraries that a minimal Debian or Ubuntu lacks. */
const PACKAGES = ['redis-server', 'redis-tools', 'libjemalloc2', 'liblzf1', 'libatomic1'];

const LAUNCHER = `#!/bin/sh
here=$(dirname "$0")
libraries=$(find "$here/usr/lib" -name '*.so.*' -exec dirname {} ';' | sort -u | tr '\\n' ':')
LD_LIBRARY_PATH="$libraries$LD_LIBRARY_PATH" exec "$here/usr/bin/redis-server" "$@"
`;

/**
 * The distribution's own Redis, downloaded by apt (which checks its signature) and unpacked into the cache folder
 * without root.
 * @returns the path of a launcher that starts the server with its libraries
 */
export async function redisFromDebian(cacheDir: string, onDownload: (what: string) => void): Promise<string> {
  const target = join(cacheDir, 'redis-debian');
  const launcher = join(target, 'redis-server');
  if (await runs(launcher)) return launcher;

  onDownload('Redis (redis-server, by apt-get)');
  await mkdir(cacheDir, { recursive: true });
  const work = await mkdtemp(join(cacheDir, 'download-'));
  try {
    await run('apt-get', ['download', ...PACKAGES], { cwd: work });
    const root = join(work, 'root');
    await mkdir(root);
    for (const file of (await readdir(work)).filter((name) => name.endsWith('.deb'))) {
      await run('dpkg', ['-x', join(work, file), root]);
    }
    await writeFile(join(root, 'redis-server'), LAUNCHER, { mode: 0o755 });
    await serverVersion(join(root, 'redis-server'));
    await rename(root, target).catch(async (error: unknown) => {
      // Another process installed it first, or left a broken one.
      if (await runs(launcher)) return;
      await rm(target, { recursive: true, force: true });
      await rename(root, target).catch(() => Promise.reject(error));
    });
    return launcher;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function runs(binary: string): Promise<boolean> {
  return serverVersion(binary).then(
    () => true,
    () => false,
  );
}
