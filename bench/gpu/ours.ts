import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeLora } from '../../packages/flux/src/lora/export.ts';
import type { Style } from '../../packages/flux/src/lora/types.ts';
import { EngineProcess } from '../../packages/flux/src/runtime/engine-process.ts';
import type { EngineImage, EngineRequest } from '../../packages/flux/src/pipeline.ts';
import type { ModelFiles } from '../../packages/flux/src/checkpoint/model-files.ts';
import type { Provider } from '../../packages/flux/src/runtime/session.ts';
import { fluxDevShapes, randomLora } from '../random-lora.ts';
import type { DeviceMemory } from './device-memory.ts';

/** One line of the table; what was not measured is absent. */
export interface Measurement {
  who: string;
  what: string;
  size?: number;
  steps?: number;
  totalMs?: number;
  textMs?: number;
  stepMs?: number;
  decodeMs?: number;
  loadMs?: number;
  swapMs?: number;
  peakGb?: number;
  error?: string;
}

export interface OursOptions {
  files: ModelFiles;
  folder: string;
  provider: Provider;
  sizes: readonly number[];
  steps: readonly number[];
  /** Modules that the LoRAs are on; all of the blocks' linears when absent. */
  adapted?: (module: string) => boolean;
  memory: DeviceMemory;
  report: (measurement: Measurement) => void;
  /** Added to what is measured. */
  note?: string;
}

const PROMPTS = ['a heron in the reeds', 'a bowl of ripe strawberries', 'a lighthouse at night'];

/** Loads, steps, whole jobs, LoRAs and their swap in one engine process. */
export async function measureOurs(options: OursOptions): Promise<void> {
  const { files, folder, provider, sizes, steps, memory, report, note = '' } = options;
  const loras = await writeLoras(folder, options.adapted ?? (() => true));
  const engine = EngineProcess.spawn({
    onLog: (line) => /W:onnxruntime/.test(line) || console.log(`  ${line}`),
  });
  const who = 'atelier';
  const what = (text: string): string => `${text}${note}`;
  const base = { width: 0, height: 0, steps: steps[0]!, guidance: 3.5, seed: 1, prompt: PROMPTS[0]! };
  const draw = (size: number, extra: Partial<EngineRequest>): Promise<EngineImage> =>
    engine.generate({ ...base, width: size, height: size, ...extra });
  try {
    const { loadMs, device } = await engine.load({
      name: 'flux',
      files,
      cacheDir: join(folder, 'cache'),
      maxSequenceLength: 512,
      provider,
    });
    console.log(`  ${device.name ?? 'the processor'}: ${device.reason}`);
    report({ who, what: what('load'), loadMs, peakGb: memory.takePeak() });

    const largest = Math.max(...sizes);
    for (const size of sizes) {
      await draw(size, { steps: 2 });
      for (const count of size === largest ? steps : steps.slice(0, 1)) {
        // A prompt that is new to the engine, so that the text is encoded.
        const image = await draw(size, { steps: count, prompt: PROMPTS[1]! + count + size });
        report({ who, what: what('fp8'), size, ...timed(image, count), peakGb: memory.takePeak() });
      }
    }
    for (const [text, styles] of [
      ['fp8, LoRA r4 on attention', loras.slice(0, 1)],
      ['fp8, LoRA r16 on all linears', loras.slice(1, 2)],
      ['fp8, three LoRAs r16 on all linears', loras.slice(1)],
    ] as const) {
      await draw(largest, { styles });
      const image = await draw(largest, { styles, prompt: PROMPTS[2]! + text });
      report({
        who,
        what: what(text),
        size: largest,
        ...timed(image, base.steps),
        peakGb: memory.takePeak(),
      });
    }
    report({
      who,
      what: what('swap of a LoRA r16 in memory'),
      swapMs: await swap(draw, largest, loras.slice(1, 3)),
    });
  } catch (error) {
    report({ who, what: what('failed'), error: String(error).slice(0, 300) });
  } finally {
    engine.kill();
    await engine.exited;
  }
}

/** What a job of one step takes longer when its LoRA is not that of the job before. */
async function swap(
  draw: (size: number, extra: Partial<EngineRequest>) => Promise<EngineImage>,
  size: number,
  [first, second]: readonly Style[],
): Promise<number> {
  const once = async (style: Style): Promise<number> => {
    const { timings } = await draw(size, { styles: [style], steps: 1 });
    return timings.style_ms + timings.denoise_ms;
  };
  await once(first!);
  await once(second!);
  const [swapped, again] = [await once(first!), await once(first!)];
  return swapped - again;
}

function timed({ timings }: EngineImage, steps: number): Partial<Measurement> {
  const { total_ms, text_ms, denoise_ms, decode_ms } = timings;
  return { steps, totalMs: total_ms, textMs: text_ms, stepMs: denoise_ms / steps, decodeMs: decode_ms };
}

/** One of rank 4 on attention and three of rank 16. */
async function writeLoras(folder: string, adapted: (module: string) => boolean): Promise<Style[]> {
  const styles: Style[] = [];
  for (const [key, rank, wanted] of [
    ['r4', 4, (module: string) => module.includes('.attn.') && adapted(module)],
    ['r16-a', 16, adapted],
    ['r16-b', 16, adapted],
    ['r16-c', 16, adapted],
  ] as const) {
    const file = join(folder, `${key}.safetensors`);
    const isThere = await stat(file).catch(() => null);
    if (!isThere) await writeLora(file, randomLora(fluxDevShapes(), rank, wanted), 'peft', {}, 'F16');
    styles.push({ file, key, weight: 1 });
  }
  return styles;
}
