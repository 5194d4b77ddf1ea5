import type { TrainingInput, TrainingMetrics } from '@atelier/shared';

const EXAMPLE = 'a lighthouse';

/** The loss on the pictures held back, else that of the steps: "validation loss 0.2665 to 0.1991". */
export function lossOf({ steps, validation }: Pick<TrainingMetrics, 'steps' | 'validation'>): string | null {
  const [name, series] = validation.length > 1 ? ['validation loss', validation] : ['loss', steps];
  const [first, last] = [series.at(0), series.at(-1)];
  return first && last ? `${name} ${first.loss.toFixed(4)} to ${last.loss.toFixed(4)}` : null;
}

/** The command that draws with a trained style: its first sample prompt, or a subject behind the trigger word. */
export function useCommand(
  lora: string,
  input: Pick<TrainingInput, 'trigger_word' | 'sample_prompts'>,
): string {
  const word = input.trigger_word;
  const example = input.sample_prompts?.[0] ?? EXAMPLE;
  const prompt = word === undefined || example.includes(word) ? example : `${word}, ${example}`;
  return `atelier generate ${quoted(prompt)} --style ${lora}`;
}

/** For a POSIX shell: in double quotes where that is enough, since people read it. */
function quoted(text: string): string {
  return /["$`\\!]/.test(text) ? `'${text.replaceAll("'", String.raw`'\''`)}'` : `"${text}"`;
}
