import type { TrainingMetrics } from '@atelier/shared';

export type TrainingSample = TrainingMetrics['samples'][number];

/** Something that a training has measured or made. */
export type TrainingNews =
  | { type: 'validation'; epoch: number; loss: number }
  | { type: 'sample'; epoch: number; sample: TrainingSample }
  | { type: 'checkpoint'; epoch: number; step: number; lora: string; validationLoss: number | null };

/**
 * Finds in a training's metrics what was not there before, in the order in which it came about. What an attempt
 * after a crash measures anew is told again only where it differs.
 */
export class TrainingNewsReader {
  readonly #known = new Set<string>();

  take({ validation, samples, checkpoints }: TrainingMetrics): TrainingNews[] {
    const all: TrainingNews[] = [
      ...validation.map(({ epoch, loss }) => ({ type: 'validation' as const, epoch, loss })),
      ...samples.map((sample) => ({ type: 'sample' as const, epoch: sample.epoch, sample })),
      ...checkpoints.map(({ epoch, step, lora }) => ({
        type: 'checkpoint' as const,
        epoch,
        step,
        lora,
        validationLoss: validation.find((entry) => entry.epoch === epoch)?.loss ?? null,
      })),
    ];
    const news = all.filter((entry) => !this.#known.has(keyOf(entry)));
    for (const entry of news) this.#known.add(keyOf(entry));
    // The sort is stable: within an epoch first the loss, then the pictures, then the version.
    return news.toSorted((a, b) => a.epoch - b.epoch);
  }

  /** The next look finds it again. */
  forget(news: TrainingNews): void {
    this.#known.delete(keyOf(news));
  }
}

function keyOf(news: TrainingNews): string {
  switch (news.type) {
    case 'validation':
      return `validation ${news.epoch} ${news.loss}`;
    case 'sample':
      return `sample ${news.sample.step} ${news.sample.index} ${news.sample.sha256}`;
    case 'checkpoint':
      return `checkpoint ${news.lora}`;
    default: {
      const never: never = news;
      return never;
    }
  }
}
