import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Config, readConfig } from './config.ts';
import { rejection, temporaryFolder } from './testing.ts';

const folder = temporaryFolder();
const KIND = { name: 'ae_config.json', describes: ['AutoencoderKL'] };

const config = (values: Record<string, unknown>) => new Config('c.json', values);

test('a folder has config.json', async () => {
  const path = folder.file('folder');
  await mkdir(path);
  expect((await readConfig(path, KIND)).exists).toBe(false);
  await writeFile(join(path, 'config.json'), '{"_class_name":"AutoencoderKL","latent_channels":4}');
  expect((await readConfig(path, KIND)).integer('latent_channels')).toBe(4);
});

test('a file has a config of its own name, of the usual name, or a shared one that is meant for it', async () => {
  const path = folder.file('flux-vae.safetensors');
  await writeFile(path, '');
  const number = async () => (await readConfig(path, KIND)).number('n', 0);
  await writeFile(folder.file('config.json'), '{"_class_name":"FluxTransformer2DModel","n":1}');
  expect(await number()).toBe(0);
  await writeFile(folder.file('config.json'), '{"n":1}');
  expect(await number()).toBe(0);
  await writeFile(folder.file('config.json'), '{"_class_name":"AutoencoderKL","n":2}');
  expect(await number()).toBe(2);
  await writeFile(folder.file('ae_config.json'), '{"n":3}');
  expect(await number()).toBe(3);
  await writeFile(folder.file('flux-vae_config.json'), '{"n":4}');
  expect(await number()).toBe(4);
  await writeFile(folder.file('flux-vae_config.json'), '{"_class_name":"VQModel"}');
  const error = await rejection(readConfig(path, KIND));
  expect(error.code).toBe('checkpoint_unsupported');
  expect(error.message).toContain(`describes 'VQModel'; supported: AutoencoderKL`);
  await writeFile(folder.file('flux-vae_config.json'), '{"n":1,"n":2}');
  expect((await rejection(readConfig(path, KIND))).message).toContain(`config has the key 'n' twice`);
});

test('values of another kind are refused with what was expected; null is absent', () => {
  expect(() => config({ a: '1' }).number('a')).toThrow(`c.json: a is '1'; expected a number`);
  expect(() => config({ a: -1 }).integer('a')).toThrow('a is -1; expected an integer of at least 0');
  expect(() => config({ a: 1.5 }).integer('a')).toThrow('a is 1.5');
  expect(() => config({ a: 1 }).boolean('a')).toThrow('a is 1; expected true or false');
  expect(() => config({ a: [1, 0] }).integers('a')).toThrow(
    'a is [ 1, 0 ]; expected an array of positive integers',
  );
  expect(() => config({ a: 'relu' }).choice('a', ['gelu'])).toThrow(`a is 'relu'; supported: gelu`);
  expect(() => config({ a: null }).number('a')).toThrow('has no a; expected a number');
  expect(config({ a: null }).number('a', 7)).toBe(7);
  expect(() => config({}).number('toString')).toThrow('has no toString');
  expect(() => new Config('c.json', undefined).number('a')).toThrow('is needed for a, and absent');
});

test('a config that contradicts the weights is refused, one that is silent is not', () => {
  const facts = { layers: 3, channels: [1, 2], guidance: true };
  config({}).checkAgainst(facts);
  config({ layers: 3, channels: [1, 2], guidance: true }).checkAgainst(facts);
  expect(() => config({ layers: 4 }).checkAgainst(facts)).toThrow('layers is 4; the weights say 3');
  expect(() => config({ channels: [1] }).checkAgainst(facts)).toThrow(
    'channels is [ 1 ]; the weights say [ 1, 2 ]',
  );
  expect(() => config({ guidance: false }).checkAgainst(facts)).toThrow(
    'guidance is false; the weights say true',
  );
});
