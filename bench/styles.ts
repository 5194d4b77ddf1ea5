import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { EngineProcess, type Style } from '@atelier/flux';
import { type Lora, loraTarget, openModel, readLora, writeLora } from '@atelier/flux/lora';
import { composeDeltas } from '../packages/flux/src/lora/compose.ts';
import { bundledModel } from './bundled-model.ts';
import { fluxDevShapes, randomLora } from './random-lora.ts';
import { median } from './statistics.ts';

/*
 * npm run bench:styles: what styles cost. A step of the bundled model with and without LoRAs, in turns in one engine
 * process; and the swap of a LoRA of FLUX.1-dev's size: reading the file, and composing what is in memory already.
 */

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '7' },
    steps: { type: 'string', default: '20' },
    threads: { type: 'string', default: '2' },
  },
});
const steps = Number(values.steps);
const dir = await mkdtemp(join(tmpdir(), 'atelier-bench-'));

try {
  await benchSteps();
  await benchSwap();
} finally {
  await rm(dir, { recursive: true });
}

async function benchSteps(): Promise<void> {
  const opened = await openModel(bundledModel());
  const { transformer: shapes } = loraTarget({
    transformer: opened.transformer.spec,
    clip: opened.clip.spec,
  });
  const isAttention = (module: string) => module.includes('.attn.');
  const everything = () => true;
  const file = async (name: string, lora: Lora): Promise<Style> => {
    const path = join(dir, `${name}.safetensors`);
    await writeLora(path, lora, 'peft', {}, 'F32');
    return { file: path, key: name, weight: 0.5 };
  };
  const small = await file('r4', randomLora(shapes, 4, isAttention));
  const large = [];
  for (const name of ['a', 'b', 'c']) large.push(await file(name, randomLora(shapes, 16, everything)));

  const sets: [name: string, styles: Style[]][] = [
    ['none', []],
    ['one r4 on attention', [small]],
    ['one r16 on every linear', large.slice(0, 1)],
    ['three r16 on every linear', large],
  ];
  const stepMs = sets.map((): number[] => []);
  const firstMs = sets.map((): number[] => []);
  const engine = EngineProcess.spawn();
  try {
    const load = { name: 'mini', files: bundledModel(), cacheDir: dir, maxSequenceLength: 32 };
    await engine.load({ ...load, threads: Number(values.threads) });
    const request = { prompt: 'a rocket', width: 128, height: 128, steps, guidance: 3, seed: 1 };
    await engine.generate(request);
    for (let run = 0; run < Number(values.runs); run++) {
      for (const [i, [, styles]] of sets.entries()) {
        // Each set is new to the engine here: it keeps fewer sets than there are.
        const first = await engine.generate({ ...request, styles });
        firstMs[i]!.push(first.timings.style_ms);
        const { timings } = await engine.generate({ ...request, styles });
        stepMs[i]!.push(timings.denoise_ms / steps);
      }
    }
  } finally {
    await engine.close();
  }
  const plain = median(stepMs[0]!);
  console.log(
    `\nbundled model, 128 x 128, ${steps} steps, ${values.threads} threads, ${values.runs} runs in turns`,
  );
  console.table(
    sets.map(([styles], i) => ({
      styles,
      'step ms': round(median(stepMs[i]!)),
      ratio: round(median(stepMs[i]!) / plain),
      'change of styles ms': round(median(firstMs[i]!)),
    })),
  );
}

async function benchSwap(): Promise<void> {
  const path = join(dir, 'flux.safetensors');
  await writeLora(
    path,
    randomLora(fluxDevShapes(), 16, () => true),
    'peft',
    {},
    'F16',
  );
  const megabytes = (await stat(path)).size / 1e6;
  const readMs: number[] = [];
  const loras: Lora[] = [];
  for (let i = 0; i < 3; i++) {
    const started = performance.now();
    loras.push(await readLora(path, null));
    readMs.push(performance.now() - started);
  }
  const swapMs = (count: number): number =>
    median(
      Array.from({ length: 5 }, () => {
        const started = performance.now();
        composeDeltas(loras.slice(0, count).map((lora) => ({ deltas: lora.transformer, weight: 0.7 })));
        return performance.now() - started;
      }),
    );
  console.log(
    `FLUX.1-dev size, r16 on every linear of the blocks, ${Math.round(megabytes)} MB in fp16: ` +
      `read ${Math.round(median(readMs))} ms; swap from memory ${Math.round(swapMs(1))} ms, three at once ${Math.round(swapMs(3))} ms`,
  );
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
