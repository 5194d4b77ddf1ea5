import { buffer } from 'node:stream/consumers';
import { type JobRef, type ObjectStore, TrainingMetrics, trainingMetricsKey } from '@atelier/shared';
import type { TrainEvent } from './engine.ts';

/** The series of a training. An attempt that goes on from a checkpoint replaces what came after that. */
export class Measurements {
  readonly #store: ObjectStore;
  readonly #ref: JobRef;
  #metrics: TrainingMetrics = { steps: [], validation: [], checkpoints: [], samples: [], skipped: [] };

  constructor(store: ObjectStore, ref: JobRef) {
    this.#store = store;
    this.#ref = ref;
  }

  /** Takes up what an attempt before has stored. */
  async load(): Promise<void> {
    const object = await this.#store.get(trainingMetricsKey(this.#ref));
    if (object) this.#metrics = TrainingMetrics.parse(JSON.parse((await buffer(object.body)).toString()));
  }

  add(event: TrainEvent): void {
    const { steps, validation } = this.#metrics;
    switch (event.type) {
      case 'ready':
        this.#metrics.skipped = event.skipped.map(({ file, problem }) => ({ file, problem }));
        break;
      case 'step':
        this.#metrics.steps = steps.filter(({ step }) => step < event.step);
        this.#metrics.steps.push({
          step: event.step,
          epoch: event.epoch,
          loss: event.loss,
          learning_rate: event.learningRate,
          gradient_norm: event.gradientNorm,
        });
        break;
      case 'validation':
        this.#metrics.validation = validation.filter(({ epoch }) => epoch < event.epoch);
        this.#metrics.validation.push({ epoch: event.epoch, loss: event.loss });
        break;
      // Progress only, and what addVersion() is told once it is published.
      case 'preparing':
      case 'checkpoint':
        break;
      default: {
        const never: never = event;
        throw new Error(`unknown event ${String(never)}`);
      }
    }
  }

  addVersion(epoch: number, step: number, lora: string): void {
    this.#metrics.checkpoints = this.#metrics.checkpoints.filter((known) => known.step < step);
    this.#metrics.checkpoints.push({ epoch, step, lora });
  }

  async save(): Promise<void> {
    await this.#store.put(trainingMetricsKey(this.#ref), Buffer.from(JSON.stringify(this.#metrics)), {
      contentType: 'application/json',
    });
  }
}
