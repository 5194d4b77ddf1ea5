import { join } from 'node:path';
import type { ModelFiles } from '@atelier/flux';

/** Files of models/mini. */
export function bundledModel(): ModelFiles {
  const folder = join(import.meta.dirname, '..', 'models', 'mini');
  return {
    transformer: join(folder, 'transformer.safetensors'),
    vae: join(folder, 'ae.safetensors'),
    textEncoder: join(folder, 'text_encoder'),
    textEncoder2: join(folder, 'text_encoder_2'),
    tokenizer: join(folder, 'tokenizer'),
    tokenizer2: join(folder, 'tokenizer_2'),
    scheduler: join(folder, 'scheduler'),
  };
}
