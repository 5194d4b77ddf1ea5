import { mkdtemp, readFile, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { EngineProcess } from '@atelier/flux';
import sharp from 'sharp';
import { bundledModel } from './bundled-model.ts';
import { type Colour, deltaE, meanColour, measure } from './colour.ts';

/*
 * node bench/style-effect.ts LORA.safetensors: what a LoRA trained on examples/ink-wash does to subjects that it has
 * not seen. Each of held-out-subjects.txt is drawn without and with it, same prompt and same seed; told are the mean
 * chroma of what is drawn, and how far the paper is from that of the training pictures.
 */

const SIZE = 128;
const EXAMPLE = join(import.meta.dirname, '../examples/ink-wash');

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    weight: { type: 'string', default: '1' },
    prompt: { type: 'string', default: 'a *' },
    steps: { type: 'string', default: '20' },
    guidance: { type: 'string', default: '3' },
    seed: { type: 'string', default: '1' },
    threads: { type: 'string', default: '2' },
  },
});
const [lora] = positionals;
if (!lora)
  throw new Error('usage: node bench/style-effect.ts LORA.safetensors [--weight 1] [--prompt "a *"]');

const subjects = (await readFile(join(EXAMPLE, 'held-out-subjects.txt'), 'utf8')).trim().split('\n');
const trained = await trainingPictures();
const cacheDir = await mkdtemp(join(tmpdir(), 'atelier-style-'));
const engine = EngineProcess.spawn();
const base: Colour[] = [];
const styled: Colour[] = [];
try {
  const threads = Number(values.threads);
  await engine.load({ name: 'mini', files: bundledModel(), cacheDir, maxSequenceLength: 32, threads });
  const style = { file: lora, key: lora, weight: Number(values.weight) };
  for (const [styles, list] of [
    [[], base],
    [[style], styled],
  ] as const) {
    for (const [i, subject] of subjects.entries()) {
      const { pixels } = await engine.generate({
        prompt: values.prompt.replace('*', subject).replace(/\ba (?=[aeiou])/, 'an '),
        width: SIZE,
        height: SIZE,
        steps: Number(values.steps),
        guidance: Number(values.guidance),
        seed: Number(values.seed) + i,
        styles: [...styles],
      });
      list.push(measure(pixels, SIZE, SIZE));
    }
  }
} finally {
  await engine.close();
  await rm(cacheDir, { recursive: true });
}

const goal = meanColour(trained);
const row = (name: string, colours: readonly Colour[]): string => {
  const { chroma, paper } = meanColour(colours);
  const distance =
    colours.reduce((sum, colour) => sum + deltaE(colour.paper, goal.paper), 0) / colours.length;
  const lab = paper.map((value) => value.toFixed(1)).join(', ');
  return `${name.padEnd(28)} ${chroma.toFixed(1).padStart(7)}  ${lab.padEnd(18)} ${distance.toFixed(1).padStart(6)}`;
};
for (const [i, subject] of subjects.entries()) {
  console.log(row(subject, [base[i]!]));
  console.log(row('  with the style', [styled[i]!]));
}
console.log(
  `\n${''.padEnd(28)} ${'chroma'.padStart(7)}  ${'paper L*, a*, b*'.padEnd(18)} ${'ΔE'.padStart(6)}`,
);
console.log(row(`${subjects.length} subjects without`, base));
console.log(row('with the style', styled));
console.log(row(`the ${trained.length} training pictures`, trained));

async function trainingPictures(): Promise<Colour[]> {
  const folder = join(EXAMPLE, 'images');
  const colours: Colour[] = [];
  for (const name of (await readdir(folder)).sort()) {
    const image = sharp(join(folder, name)).flatten({ background: 'white' }).toColourspace('srgb');
    const { data, info } = await image.raw().toBuffer({ resolveWithObject: true });
    colours.push(measure(data, info.width, info.height));
  }
  return colours;
}
