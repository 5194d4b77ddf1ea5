import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { openSafetensors, readTensor, writeSafetensors } from '../checkpoint/safetensors.ts';
import { FluxError } from '../errors.ts';
import { writeLora } from '../lora/export.ts';
import type { TrainingOptions } from './options.ts';
import { asLora, type TrainedModule, trainedModule } from './parameters.ts';
import type { TargetModule } from './targets.ts';
import type { TrainerState } from './trainer.ts';

/** The LoRA of a checkpoint, in PEFT form. */
export const LORA_FILE = 'lora.safetensors';
const STATE = 'state.safetensors';
const POSITION = 'position.json';

/** The matrices of a module that a training goes on from: parameters and optimizer moments. */
const PARTS = ['down', 'up', 'down.first', 'down.second', 'up.first', 'up.second'] as const;

/** What a checkpoint folder is about; compared when a training goes on. */
export interface CheckpointHeader extends TrainerState {
  options: TrainingOptions;
}

/**
 * Writes a checkpoint: the LoRA in PEFT form, fp32 parameters with their optimizer state, and the position. The
 * position is written last, so a folder that has one is whole.
 */
export async function saveCheckpoint(
  folder: string,
  header: CheckpointHeader,
  modules: readonly TrainedModule[],
): Promise<void> {
  await mkdir(folder, { recursive: true });
  await writeLora(join(folder, LORA_FILE), asLora(modules), 'peft', {}, 'F32');
  const entries = modules.flatMap((module) =>
    PARTS.map((part) => {
      const values = valuesOf(module, part);
      return {
        name: `${module.module}:${part}`,
        dtype: 'F32' as const,
        shape: [values.length],
        data: new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
      };
    }),
  );
  await writeSafetensors(join(folder, STATE), entries);
  await writeFile(join(folder, POSITION), JSON.stringify(header, null, 2));
}

/**
 * Reads a checkpoint back, bit for bit.
 * @throws FluxError request_invalid when it belongs to other options or modules, checkpoint_* when it is damaged
 */
export async function loadCheckpoint(
  folder: string,
  options: TrainingOptions,
  targets: readonly TargetModule[],
): Promise<{ state: TrainerState; modules: TrainedModule[] }> {
  const header = JSON.parse(await readFile(join(folder, POSITION), 'utf8')) as CheckpointHeader;
  const { options: before, ...state } = header;
  if (JSON.stringify(before) !== JSON.stringify(options))
    throw new FluxError('request_invalid', `the checkpoint ${folder} was made with other options`);
  const file = await openSafetensors(join(folder, STATE));
  const read = async (name: string): Promise<Float32Array> => {
    const info = file.tensors.get(name);
    if (!info) throw new FluxError('checkpoint_missing', `the checkpoint ${folder} lacks ${name}`);
    const bytes = await readTensor(info);
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  };
  const modules: TrainedModule[] = [];
  for (const target of targets) {
    const [down, up] = [await read(`${target.module}:down`), await read(`${target.module}:up`)];
    const module = trainedModule(target, options.loraRank, options.loraAlpha / options.loraRank, down, up);
    for (const part of PARTS.slice(2)) valuesOf(module, part).set(await read(`${target.module}:${part}`));
    modules.push(module);
  }
  return { state, modules };
}

function valuesOf(module: TrainedModule, part: (typeof PARTS)[number]): Float32Array {
  const [side, moment] = part.split('.') as ['down' | 'up', 'first' | 'second' | undefined];
  return moment ? module.moments[side][moment] : module[side];
}
