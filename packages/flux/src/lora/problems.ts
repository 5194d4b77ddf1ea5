import { FluxError } from '../errors.ts';

export { firstFew, shown } from '../checkpoint/problems.ts';

type Details = Record<string, unknown>;

/** The file is malformed, lying or contradicts itself. */
export function loraInvalid(file: string, problem: string, details: Details = {}): FluxError {
  return new FluxError('lora_invalid', `${file}: ${problem}`, { details: { file, ...details } });
}

/** The file adds up, but is no LoRA that this engine or this model can use. */
export function loraUnsupported(file: string, problem: string, details: Details = {}): FluxError {
  return new FluxError('lora_unsupported', `${file}: ${problem}`, { details: { file, ...details } });
}

/** Runs `read`, giving what the safetensors reader finds wrong with the file the codes of a LoRA. */
export async function withLoraCodes<T>(read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof FluxError)) throw error;
    const { message, details } = error;
    if (error.code === 'checkpoint_invalid')
      throw new FluxError('lora_invalid', message, { cause: error, details });
    if (error.code === 'checkpoint_unsupported')
      throw new FluxError('lora_unsupported', message, { cause: error, details });
    throw error;
  }
}

/** `[2, 3]` */
export function shapeText(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}
