import { execFile } from 'node:child_process';
import { access } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { FluxError } from '../errors.ts';
import { GraphBuilder } from '../graph/builder.ts';
import { add } from '../graph/ops.ts';
import { GraphSession, type Provider } from './session.ts';

/** What the engine computes on, and why. */
export interface Device {
  provider: Provider;
  /** Such as 'NVIDIA GeForce RTX 3060'; null for the processor. */
  name: string | null;
  /** One line for people: what was chosen and why not the other. */
  reason: string;
  /** Of the device when it was chosen; null for the processor, and where nobody can be asked. */
  memory: { totalBytes: number; freeBytes: number } | null;
}

const MIB = 2 ** 20;

/**
 * Chooses where graphs run. 'auto' takes an NVIDIA GPU when there is one and ONNX Runtime can use it, else the
 * processor; a provider that was asked for by name is taken or refused. WebGPU is taken only by name: it has no fp8,
 * and a browser-grade driver is found on machines where nobody expects it.
 * @throws FluxError provider_unavailable, whose message says what is missing and how to get it
 */
export async function chooseDevice(wanted: 'auto' | Provider): Promise<Device> {
  if (wanted === 'cpu') return cpu('asked for');
  const card = await nvidiaCard();
  if (wanted === 'auto' && !card) return cpu('no NVIDIA GPU was found (nvidia-smi does not answer)');
  const provider = wanted === 'auto' ? 'cuda' : wanted;
  const problem = (provider === 'cuda' ? await missingForCuda() : null) ?? (await tryProvider(provider));
  if (problem === null)
    return {
      provider,
      name: provider === 'cuda' ? (card?.name ?? 'CUDA device 0') : 'WebGPU adapter',
      reason: wanted === 'auto' ? 'an NVIDIA GPU was found' : 'asked for',
      memory: provider === 'cuda' ? (card?.memory ?? null) : null,
    };
  if (wanted === 'auto') return cpu(`${card!.name} was found, but ${problem}`);
  throw new FluxError('provider_unavailable', `the ${provider} provider cannot be used: ${problem}`, {
    details: { provider },
  });
}

function cpu(reason: string): Device {
  return { provider: 'cpu', name: null, reason, memory: null };
}

/** Name and memory of the first NVIDIA GPU that this process may see; null when there is none. */
export async function nvidiaCard(): Promise<Pick<Device, 'name' | 'memory'> | null> {
  const visible = process.env['CUDA_VISIBLE_DEVICES']?.split(',')[0];
  const query = ['--query-gpu=name,memory.total,memory.free', '--format=csv,noheader,nounits'];
  try {
    const { stdout } = await promisify(execFile)('nvidia-smi', visible ? ['-i', visible, ...query] : query);
    const [name, total, free] = stdout
      .split('\n')[0]!
      .split(',')
      .map((field) => field.trim());
    const memory = { totalBytes: Number(total) * MIB, freeBytes: Number(free) * MIB };
    return name && memory.totalBytes > 0 ? { name, memory } : null;
  } catch {
    return null;
  }
}

/** Adds two numbers there. @returns what is wrong, in words; null when the sum is right */
async function tryProvider(provider: Provider): Promise<string | null> {
  const g = new GraphBuilder('probe');
  const x = g.input('x', 'float32', [2]);
  g.output('sum', add(g, x, x));
  try {
    const session = await GraphSession.create('probe', g.build(), { provider });
    try {
      const { sum } = await session.run({ x: { data: Float32Array.of(1, -2.5), dims: [2] } }, ['sum']);
      return sum.data[0] === 2 && sum.data[1] === -5 ? null : `1 + 1 came out as ${sum.data[0]}`;
    } finally {
      await session.release();
    }
  } catch (error) {
    const cause = error instanceof FluxError ? error.cause : error;
    return String(cause).split('\n')[0]!.slice(0, 300);
  }
}

/**
 * Why the CUDA provider cannot be loaded, with the way out; null when all of its libraries are there. ONNX Runtime's own
 * error names no library.
 */
async function missingForCuda(): Promise<string | null> {
  if (process.platform !== 'linux') return null;
  const folder = join(
    dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json')),
    'bin/napi-v6/linux',
    process.arch,
  );
  const library = join(folder, 'libonnxruntime_providers_cuda.so');
  const isThere = await access(library).then(
    () => true,
    () => false,
  );
  if (!isThere)
    return (
      'the CUDA provider of ONNX Runtime is not installed; ' +
      'ONNXRUNTIME_NODE_INSTALL=cuda12 npm rebuild onnxruntime-node fetches it'
    );
  const { stdout } = await promisify(execFile)('ldd', [library]).catch(() => ({ stdout: '' }));
  const missing = [...stdout.matchAll(/^\s*(\S+) => not found$/gm)].map(([, name]) => name!);
  return missing.length === 0 ? null : missingLibraries(missing);
}

/** @example missingLibraries(['libcudnn.so.9']) */
export function missingLibraries(names: readonly string[]): string {
  const needs = names.some((name) => name.startsWith('libcudnn')) ? 'cuDNN 9' : 'the CUDA runtime';
  return `${names.join(', ')} is missing; install ${needs} and have its folder in LD_LIBRARY_PATH`;
}
