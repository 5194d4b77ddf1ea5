import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { maxAbsError, tinyModel } from '../../../../test/golden/support.ts';
import { openModel, type OpenedModel } from '../checkpoint/model-files.ts';
import { FluxError } from '../errors.ts';
import type { LoadOptions } from '../model.ts';
import { denoise } from '../sampling/denoise.ts';
import { TorchGenerator } from '../sampling/random.ts';
import { NO_ADAPTATION } from '../transformer/parts.ts';
import { type LoadedParts, loadOnDevice, loadOnHost } from './load-parts.ts';
import type { Device } from './provider.ts';
import { partBytes, planResidency } from './residency.ts';

/** Plans of a device, carried out by the CPU provider: which parts are streamed, and that all give the same picture. */
let cacheDir: string;
let opened: OpenedModel;
let options: LoadOptions;
beforeAll(async () => {
  cacheDir = await mkdtemp(join(tmpdir(), 'atelier-parts-'));
  const { files, maxSequenceLength } = await tinyModel('tiny-dev');
  opened = await openModel(files);
  options = { name: 'tiny-dev', files, cacheDir, maxSequenceLength };
});
afterAll(() => rm(cacheDir, { recursive: true, force: true }));

const GIB = 2 ** 30;
const deviceWith = (freeBytes: number): Device => ({
  provider: 'cpu',
  name: 'a test',
  reason: 'a test',
  memory: { totalBytes: freeBytes, freeBytes },
});

async function picture({ base, vae }: LoadedParts): Promise<Float32Array> {
  const { text, transformer } = base;
  const grid = { height: 4, width: 4 };
  const latents = new TorchGenerator(1).randn(16 * transformer.spec.inChannels);
  const sigmas = Float32Array.of(1, 0.75, 0.4, 0);
  const input = { ...(await text.encode('a heron')), latents, sigmas, guidance: 3.5, first: 0, grid };
  let last = latents;
  for await (const step of denoise({ transformer, adaptation: NO_ADAPTATION }, input)) last = step.latents;
  const side = Math.sqrt(last.length / vae.spec.latentChannels);
  return vae.decode(last, side, side);
}

async function release({ base, vae }: LoadedParts): Promise<void> {
  await base.text.release();
  await base.transformer.release();
  await vae.release();
}

/** The least that any plan makes do with: nothing is resident then. */
function leastBytes(): number {
  for (let bytes = 0.5 * GIB; ; bytes += GIB / 128)
    try {
      planResidency(opened, partBytes(opened.transformer), bytes);
      return bytes;
    } catch {
      continue;
    }
}

test.each([
  ['all of it', () => 80 * GIB, { tokenPath: 'device', conditioner: 'resident' }, 'resident'],
  ['no token path', leastBytes, { tokenPath: 'streamed', conditioner: 'streamed' }, 'streamed'],
])('on a device with room for %s the picture is that of the processor', async (_what, bytes, plan, t5) => {
  const free = bytes();
  const host = await loadOnHost(opened, options);
  const device = await loadOnDevice(opened, { ...options, device: deviceWith(free) });
  expect(device.residency).toMatchObject({ transformer: plan, t5, freeBytes: free });
  const [expected, found] = [await picture(host), await picture(device)];
  expect(maxAbsError(found, expected)).toBeLessThan(2e-2);
  await release(host);
  await release(device);
});

test('a device that is too small is refused with what it has and what is needed', async () => {
  const loading = loadOnDevice(opened, { ...options, device: deviceWith(0.5 * GIB) });
  const error = await loading.catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(FluxError);
  expect(error).toMatchObject({
    code: 'device_too_small',
    message: expect.stringMatching(/has 0\.50 GiB of free memory; this model needs \d\.\d\d GiB/),
  });
});
