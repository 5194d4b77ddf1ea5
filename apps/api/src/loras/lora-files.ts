import { fork } from 'node:child_process';
import { join } from 'node:path';
import { AtelierError, type ModelPaths } from '@atelier/shared';
import type { FileAnswer, FileFacts, FileRequest } from './file-protocol.ts';

const PROGRAM = join(import.meta.dirname, 'file-process.ts');
/** A file of 2 GiB takes about a minute. */
const TIMEOUT_MS = 10 * 60_000;

/** Reads LoRA files in processes of their own, one after the other. */
export class LoraFiles {
  #last: Promise<unknown> = Promise.resolve();

  /**
   * What a file is.
   * @throws AtelierError `lora_invalid` that names the tensor and what was expected
   */
  async check(file: string, model: ModelPaths): Promise<FileFacts> {
    const facts = await this.#inTurn({ task: 'check', file, model });
    if (!facts) throw new AtelierError('internal_error', 'the check of a LoRA gave nothing');
    return facts;
  }

  /** Writes the LoRA of `file` to `target` in another form. @throws AtelierError `lora_invalid` */
  async convert(
    file: string,
    target: string,
    format: 'peft' | 'kohya',
    metadata: Record<string, string>,
  ): Promise<void> {
    await this.#inTurn({ task: 'convert', file, target, format, metadata });
  }

  #inTurn(request: FileRequest): Promise<FileFacts | null> {
    const turn = this.#last.then(() => run(request));
    this.#last = turn.catch(() => {});
    return turn;
  }
}

async function run(request: FileRequest): Promise<FileFacts | null> {
  const child = fork(PROGRAM, [], { execArgv: [], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  const timer = setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS);
  try {
    const answer = await new Promise<FileAnswer>((resolve, reject) => {
      child.once('message', (message) => resolve(message as FileAnswer));
      child.once('error', reject);
      child.once('exit', (code, signal) =>
        reject(new Error(`the process that reads LoRA files ended with ${signal ?? code}`)),
      );
      child.send(request);
    });
    if (answer.ok) return answer.facts;
    throw new AtelierError(answer.refused ? 'lora_invalid' : 'internal_error', answer.message);
  } finally {
    clearTimeout(timer);
    child.kill();
  }
}
