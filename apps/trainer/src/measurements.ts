import { buffer } from 'node:stream/consumers';
import { type JobRef, type ObjectStore, TrainingMetrics, trainingMetricsKey } from '@atelier/shared';
import type { TrainEvent } from './engine.ts';
import type { StoredSample } from './samples.ts';

/** The series of a training. An attempt that goes on from a checkpoint replaces what came after that. */
export class Measurements {
  readonly #store: ObjectStore;
  readonly #ref: JobRef;
  #isUnsaved = false;
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

  /** Whether something was measured since the last save began. */
  get isUnsaved(): boolean {
    return this.#isUnsaved;
  }

  add(event: TrainEvent): void {
    const { steps, validation, checkpoints, samples } = this.#metrics;
    switch (event.type) {
      case 'ready': {
        // The attempt before may have got further than the checkpoint that this one goes on from.
        const isBefore = ({ step }: { step: number }): boolean => step <= event.step;
        this.#metrics = {
          steps: steps.filter(isBefore),
          validation: validation.filter(({ epoch }) => epoch <= event.epoch),
          checkpoints: checkpoints.filter(isBefore),
          samples: samples.filter(isBefore),
          skipped: event.skipped.map(({ file, problem }) => ({ file, problem })),
        };
        break;
      }
      case 'step':
        // It changed nothing, and JSON has no word for the norm of gradients that overflowed.
        if (event.skipped) return;
        steps.push({
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
      // For the log, progress only, and what is listed once it is published or stored.
      case 'placed':
      case 'preparing':
      case 'checkpoint':
      case 'sample':
        return;
      default: {
        const never: never = event;
        throw new Error(`unknown event ${String(never)}`);
      }
    }
    this.#isUnsaved = true;
  }

  addVersion(epoch: number, step: number, lora: string): void {
    this.#metrics.checkpoints = this.#metrics.checkpoints.filter((known) => known.step < step);
    this.#metrics.checkpoints.push({ epoch, step, lora });
    this.#isUnsaved = true;
  }

  addSample(sample: StoredSample): void {
    const { step, index } = sample;
    this.#metrics.samples = this.#metrics.samples.filter(
      (known) => known.step !== step || known.index < index,
    );
    this.#metrics.samples.push(sample);
    this.#isUnsaved = true;
  }

  async save(): Promise<void> {
    this.#isUnsaved = false;
    try {
      await this.#store.put(trainingMetricsKey(this.#ref), Buffer.from(JSON.stringify(this.#metrics)), {
        contentType: 'application/json',
      });
    } catch (error) {
      this.#isUnsaved = true;
      throw error;
    }
  }
}
