import type { Condition, Gradients, TrainingSample } from './gradients.ts';

/**
 * Gradients that are loaded when they are asked for, and again after a release: on a device, they and what draws
 * samples do not fit side by side.
 */
export class OnDemandGradients implements Gradients {
  readonly #load: () => Promise<Gradients>;
  #loaded: Gradients | null = null;
  /** What was prepared last; computed again as a whole after a release, so that its bits do not depend on one. */
  #conditions: readonly Condition[] = [];

  constructor(load: () => Promise<Gradients>) {
    this.#load = load;
  }

  async loss(sample: TrainingSample, weight?: number): Promise<number> {
    return (await this.#get()).loss(sample, weight);
  }

  async prepare(conditions: readonly Condition[]): Promise<void> {
    this.#conditions = conditions;
    if (this.#loaded) await this.#loaded.prepare(conditions);
    else await this.#get();
  }

  async release(): Promise<void> {
    const loaded = this.#loaded;
    this.#loaded = null;
    await loaded?.release();
  }

  async #get(): Promise<Gradients> {
    if (this.#loaded) return this.#loaded;
    this.#loaded = await this.#load();
    if (this.#conditions.length > 0) await this.#loaded.prepare(this.#conditions);
    return this.#loaded;
  }
}
