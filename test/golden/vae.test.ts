import { Vae } from '../../packages/flux/src/vae/vae.ts';
import { fromRgb8, toRgb8 } from '../../packages/flux/src/vae/pixels.ts';
import { goldens, maxAbsError, openTiny, TINY_MODELS, TOLERANCE } from './support.ts';

describe.each(TINY_MODELS)('%s', (name) => {
  test('encoder moments', async () => {
    const { golden, vae } = await load(name);
    const image = await golden.get('vae/encode/image');
    const [, , height, width] = image.shape as [number, number, number, number];
    const moments = await vae.moments(image.data, height, width);
    const half = moments.length / 2;
    expect(maxAbsError(moments.subarray(0, half), (await golden.get('vae/encode/mean')).data)).toBeLessThan(
      TOLERANCE,
    );
    expect(maxAbsError(moments.subarray(half), (await golden.get('vae/encode/logvar')).data)).toBeLessThan(
      TOLERANCE,
    );
    await vae.release();
  });

  test('decoder', async () => {
    const { golden, vae } = await load(name);
    const latent = await golden.get('vae/decode/latent');
    const [, , height, width] = latent.shape as [number, number, number, number];
    const { scalingFactor, shiftFactor } = vae.spec;
    // The golden is the decoder alone; decode() undoes the scaling of the transformer's latents first.
    const scaled = latent.data.map((value) => (value - shiftFactor) * scalingFactor);
    const image = await vae.decode(scaled, height, width);
    expect(maxAbsError(image, (await golden.get('vae/decode/image')).data)).toBeLessThan(TOLERANCE);
    await vae.release();
  });

  test('pixels', async () => {
    const golden = await goldens(name);
    const decoded = await golden.get('txt2img/decoded');
    const bytes = await golden.get('txt2img/image_u8');
    const [height, width] = bytes.shape as [number, number];
    expect([...toRgb8(decoded.data, width, height)]).toEqual([...bytes.data]);
    const source = await golden.get('img2img/source_u8');
    const prepared = await golden.get('img2img/prepared');
    expect(maxAbsError(fromRgb8(Uint8Array.from(source.data), width, height), prepared.data)).toBeLessThan(
      1e-6,
    );
  });
});

async function load(name: string) {
  const { opened, locator } = await openTiny(name);
  return { golden: await goldens(name), vae: await Vae.load(opened.vae.spec, locator('vae'), {}) };
}
