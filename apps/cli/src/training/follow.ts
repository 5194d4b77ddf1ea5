import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { TrainingJob, TrainingMetrics } from '@atelier/shared';
import type { StudioClient } from '../client.ts';
import { dim, duration, red, shorten } from '../output.ts';
import { type Progress, progressBar } from '../progress.ts';
import { type TrainingNews, TrainingNewsReader, type TrainingSample } from './news.ts';
import { smoothed } from './smoothing.ts';

const LOOK_MS = 2_000;

export interface FollowOptions {
  /** Without bar and lines; samples are saved all the same. */
  quiet: boolean;
  /** Where samples are saved; null leaves them in the studio. */
  samplesDir: string | null;
  signal?: AbortSignal;
}

export interface FollowedTraining {
  job: TrainingJob;
  metrics: TrainingMetrics;
}

/**
 * Follows a training to its end: a bar with the smoothed loss and the time left, a line for each validation loss,
 * version and sample.
 * @throws CliError as `StudioClient.follow`; AbortError when `signal` ends the following
 */
export async function followTraining(
  client: StudioClient,
  submitted: TrainingJob,
  options: FollowOptions,
): Promise<FollowedTraining> {
  const bar = options.quiet ? null : progressBar('training', 1);
  const view = new TrainingView(client, submitted.id, options.samplesDir, bar);
  try {
    const job = await client.follow(submitted, (current) => view.onJob(current), options.signal);
    return { job, metrics: await view.lastLook() };
  } catch (error) {
    // A training that was canceled or has failed leaves versions and pictures as well.
    if (!options.signal?.aborted) await view.lastLook().catch(() => {});
    throw error;
  } finally {
    bar?.stop();
  }
}

/** Where the samples of a training go unless another folder is asked for. */
export function samplesFolder(id: string): string {
  return join('.atelier', 'samples', id);
}

/** `step-000048-0.png`: sorts by step. */
export function sampleName({ step, index }: Pick<TrainingSample, 'step' | 'index'>): string {
  return `step-${String(step).padStart(6, '0')}-${index}.png`;
}

/** What is known of a training, shown as it comes. Metrics are fetched one at a time, at most every two seconds. */
class TrainingView {
  readonly #client: StudioClient;
  readonly #path: string;
  readonly #samplesDir: string | null;
  readonly #bar: Progress | null;
  readonly #reader = new TrainingNewsReader();
  #looking: Promise<unknown> | null = null;
  #lastLook = 0;
  #loss: number | null = null;

  constructor(client: StudioClient, id: string, samplesDir: string | null, bar: Progress | null) {
    this.#client = client;
    this.#path = `/v1/trainings/${id}`;
    this.#samplesDir = samplesDir;
    this.#bar = bar;
  }

  onJob(job: TrainingJob): void {
    this.#bar?.update(job.progress.fraction, this.#noteOf(job));
    if (job.status !== 'running' || this.#looking || Date.now() - this.#lastLook < LOOK_MS) return;
    this.#lastLook = Date.now();
    // An API that is away for a moment is asked again; one that stays away ends the following of the job.
    this.#looking = this.#look()
      .catch(() => {})
      .finally(() => (this.#looking = null));
  }

  /** A sample that cannot be saved now never will be: that is told, and no reason to deny the training's end. */
  async lastLook(): Promise<TrainingMetrics> {
    await this.#looking;
    return this.#look(true);
  }

  async #look(last = false): Promise<TrainingMetrics> {
    const metrics = await this.#client.get<TrainingMetrics>(`${this.#path}/metrics`);
    this.#loss = smoothed(metrics.steps.map(({ loss }) => loss));
    const news = this.#reader.take(metrics);
    for (const [i, entry] of news.entries()) {
      try {
        const line = await this.#tell(entry);
        if (line !== null) this.#bar?.line(line);
      } catch (error) {
        if (last) {
          this.#bar?.line(
            `${red('sample not saved')} ${error instanceof Error ? error.message : String(error)}`,
          );
          continue;
        }
        for (const untold of news.slice(i)) this.#reader.forget(untold);
        throw error;
      }
    }
    return metrics;
  }

  async #tell(news: TrainingNews): Promise<string | null> {
    switch (news.type) {
      case 'validation':
        return `${dim(when(news.epoch))} validation loss ${news.loss.toFixed(4)}`;
      case 'checkpoint':
        return `${dim(when(news.epoch))} ${news.lora} can be used ${dim(`(step ${news.step})`)}`;
      case 'sample': {
        if (this.#samplesDir === null) return null;
        const file = await this.#save(this.#samplesDir, news.sample);
        return `${dim(when(news.sample.epoch))} ${file} ${dim(`"${shorten(news.sample.prompt, 48)}"`)}`;
      }
      default: {
        const never: never = news;
        return never;
      }
    }
  }

  async #save(folder: string, sample: TrainingSample): Promise<string> {
    const data = await this.#client.download(`${this.#path}/samples/${sample.step}/${sample.index}`);
    const file = join(folder, sampleName(sample));
    await mkdir(folder, { recursive: true });
    await writeFile(file, data);
    return file;
  }

  #noteOf({ status, progress, queue }: TrainingJob): string {
    if (status === 'queued') return queue.position === null ? 'waiting' : `waiting behind ${queue.position}`;
    if (progress.steps === 0) return 'reading the dataset';
    const loss = this.#loss === null ? '' : `, loss ${this.#loss.toFixed(4)}`;
    const left = progress.eta_s === null ? '' : `, ${duration(progress.eta_s * 1_000)} left`;
    return `step ${progress.step}/${progress.steps}${loss}${left}`;
  }
}

function when(epoch: number): string {
  return epoch === 0 ? 'before training' : `epoch ${epoch}`;
}
