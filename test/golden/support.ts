import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { openModel, type ModelFiles } from '../../packages/flux/src/checkpoint/model-files.ts';
import { openSafetensors, readTensor } from '../../packages/flux/src/checkpoint/safetensors.ts';

export const FIXTURES = join(import.meta.dirname, 'fixtures');

/** Largest difference that fp32 stages may have from the reference, at activations of rms about 1. */
export const TOLERANCE = 1e-4;

export const TINY_MODELS = ['tiny-dev', 'tiny-schnell'] as const;

export interface Golden {
  data: Float32Array;
  shape: number[];
}

export interface TinyModel {
  files: ModelFiles;
  maxSequenceLength: number;
}

/** A fixture's model.json with its paths made absolute. */
export async function tinyModel(name: string): Promise<TinyModel> {
  const folder = join(FIXTURES, name);
  const entry = JSON.parse(await readFile(join(folder, 'model.json'), 'utf8')) as {
    files: Record<string, string>;
    max_sequence_length: number;
  };
  const path = (key: string): string => resolve(folder, entry.files[key]!);
  return {
    files: {
      transformer: path('transformer'),
      vae: path('vae'),
      textEncoder: path('text_encoder'),
      textEncoder2: path('text_encoder_2'),
      tokenizer: path('tokenizer'),
      tokenizer2: path('tokenizer_2'),
      scheduler: path('scheduler'),
    },
    maxSequenceLength: entry.max_sequence_length,
  };
}

/** The fixture's checkpoint and, per part, its weights where they lie. */
export async function openTiny(name: string) {
  const { files, maxSequenceLength } = await tinyModel(name);
  const opened = await openModel(files);
  const locator = (part: 'transformer' | 'vae' | 'clip' | 't5') => ({
    has: (weight: string) => opened[part].weights.has(weight),
    locate: (weight: string) => opened[part].weights.get(weight),
  });
  return { files, maxSequenceLength, opened, locator };
}

/** Tensors of a goldens.safetensors by name, widened to fp32 where they are bytes. */
export async function goldens(folder: string): Promise<{
  get(name: string): Promise<Golden>;
  json: Record<string, unknown>;
}> {
  const file = await openSafetensors(join(FIXTURES, folder, 'goldens.safetensors'));
  const json = JSON.parse(await readFile(join(FIXTURES, folder, 'goldens.json'), 'utf8')) as Record<
    string,
    unknown
  >;
  return {
    json,
    async get(name) {
      const info = file.tensors.get(name);
      if (!info) throw new Error(`no golden ${name} in ${folder}`);
      const bytes = await readTensor(info);
      const data =
        info.dtype === 'U8'
          ? Float32Array.from(bytes)
          : new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
      return { data, shape: [...info.shape] };
    },
  };
}

/** Largest absolute difference; infinite when the lengths differ or a value is not finite. */
export function maxAbsError(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (found.length !== expected.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(found[i]! - expected[i]!);
    if (Number.isNaN(error)) return Infinity;
    worst = Math.max(worst, error);
  }
  return worst;
}

export function rms(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! ** 2;
  return Math.sqrt(sum / values.length);
}
