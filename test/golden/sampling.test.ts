import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openSafetensors, readTensor } from '../../packages/flux/src/checkpoint/safetensors.ts';
import type { SchedulerSpec } from '../../packages/flux/src/checkpoint/spec.ts';
import { packLatents, unpackLatents } from '../../packages/flux/src/sampling/latents.ts';
import { TorchGenerator } from '../../packages/flux/src/sampling/random.ts';
import { sigmaSchedule, startStep } from '../../packages/flux/src/sampling/schedule.ts';
import { FIXTURES, goldens, maxAbsError, TINY_MODELS } from './support.ts';

const numerics = join(FIXTURES, 'numerics');

interface Schedules {
  configs: Record<string, Record<string, number | boolean>>;
  schedules: { scheduler: string; steps: number; image_tokens: number; sigmas: number[] }[];
  image_to_image: { steps: number; strength: number; first_step: number }[];
}

describe('schedule', () => {
  test('sigmas are the bits of FlowMatchEulerDiscreteScheduler', async () => {
    const { configs, schedules } = await readSchedules();
    expect(schedules.length).toBeGreaterThan(20);
    for (const { scheduler, steps, image_tokens, sigmas } of schedules) {
      const found = sigmaSchedule(schedulerSpec(configs[scheduler]!), steps, image_tokens);
      expect({ scheduler, steps, image_tokens, sigmas: [...found] }).toEqual({
        scheduler,
        steps,
        image_tokens,
        sigmas: [...Float32Array.from(sigmas)],
      });
    }
  });

  test('image-to-image starts where FluxImg2ImgPipeline starts', async () => {
    const { image_to_image } = await readSchedules();
    for (const { steps, strength, first_step } of image_to_image)
      expect({ steps, strength, first_step: startStep(steps, strength) }).toEqual({
        steps,
        strength,
        first_step,
      });
  });
});

describe('noise', () => {
  /** torch takes its logarithms and cosines from vector kernels, whose last bits differ between machines. */
  const LAST_BITS = 1e-6;

  test.each([0, 1, 42, 2 ** 32 - 1, 2 ** 53 - 1])(
    "of seed %d is what torch's CPU generator draws",
    async (seed) => {
      const file = await openSafetensors(join(numerics, 'noise.safetensors'));
      const read = async (name: string): Promise<Float32Array> => {
        const bytes = await readTensor(file.tensors.get(name)!);
        return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
      };
      const names = [...file.tensors.keys()].filter((name) => name.split('/')[1] === String(seed));
      expect(names.length).toBeGreaterThan(15);
      for (const name of names) {
        const [kind, , sizes, part] = name.split('/') as [string, string, string, string | undefined];
        const generator = new TorchGenerator(seed);
        const expected = await read(name);
        let found: Float32Array;
        if (kind === 'pairs') {
          const [first, second] = sizes.split(',').map(Number) as [number, number];
          found = generator.randn(first);
          if (part === '1') found = generator.randn(second);
        } else {
          found = generator.randn(sizes.split(',').reduce((product, size) => product * Number(size), 1));
          if (part === 'first') found = found.subarray(0, expected.length);
          if (part === 'last') found = found.subarray(-expected.length);
        }
        expect({ name, close: maxAbsError(found, expected) <= LAST_BITS }).toEqual({ name, close: true });
      }
    },
  );
});

describe.each(TINY_MODELS)('packing (%s)', (name) => {
  test('is _pack_latents, and unpacking its inverse', async () => {
    const golden = await goldens(name);
    const latent = await golden.get('pack/latent');
    const tokens = await golden.get('pack/tokens');
    const [, channels, height, width] = latent.shape as [number, number, number, number];
    const size = { channels, height, width };
    expect(packLatents(latent.data, size)).toEqual(tokens.data);
    expect(unpackLatents(tokens.data, size)).toEqual(latent.data);
  });
});

async function readSchedules(): Promise<Schedules> {
  return JSON.parse(await readFile(join(numerics, 'schedules.json'), 'utf8')) as Schedules;
}

function schedulerSpec(config: Record<string, number | boolean>): SchedulerSpec {
  return {
    shift: config['shift'] as number,
    useDynamicShifting: config['use_dynamic_shifting'] as boolean,
    baseShift: config['base_shift'] as number,
    maxShift: config['max_shift'] as number,
    baseImageSeqLen: config['base_image_seq_len'] as number,
    maxImageSeqLen: config['max_image_seq_len'] as number,
  };
}
