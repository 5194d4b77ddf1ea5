import {
  type GenerationJob,
  type JobStatus,
  type TrainingJob,
  type TrainingMetrics,
  jobKindOf,
} from '@atelier/shared';
import type { StudioClient } from '../client.ts';
import { dim, duration, green, red, shorten } from '../output.ts';
import { type TrainingNews, TrainingNewsReader } from '../training/news.ts';
import { lossOf, useCommand } from '../training/result.ts';

const REMEMBERED = 1000;
/** Until a loss that is not there yet is looked for again. */
const LOSS_MS = 2_000;

/** What has been told of a job. */
interface Told {
  status?: JobStatus;
  readonly news: TrainingNewsReader;
}

/**
 * Tells what happens to jobs, one line for each change: of generations their status, of trainings their versions as
 * well. A log line that carries a job id is the hint that something may have changed; what is told comes from the
 * API, and so is what a client sees.
 */
export class JobNarrator {
  readonly #client: StudioClient;
  readonly #tell: (service: string, line: string) => void;
  readonly #told = new Map<string, Told>();
  readonly #looking = new Set<string>();
  /** Jobs with a hint that came during a look, which may have been too early to see the change. */
  readonly #again = new Set<string>();

  constructor(client: StudioClient, tell: (service: string, line: string) => void) {
    this.#client = client;
    this.#tell = tell;
  }

  notice(jobId: string): void {
    if (this.#looking.has(jobId)) {
      this.#again.add(jobId);
      return;
    }
    this.#looking.add(jobId);
    // An API that is stopping answers nothing; the next start lists the job all the same.
    const look = jobKindOf(jobId) === 'training' ? this.#training(jobId) : this.#generation(jobId);
    void look
      .catch(() => {})
      .finally(() => {
        this.#looking.delete(jobId);
        if (this.#again.delete(jobId)) this.notice(jobId);
      });
  }

  async #generation(jobId: string): Promise<void> {
    const job = await this.#client.get<GenerationJob>(`/v1/generations/${jobId}`);
    this.#tellStatus(job, describe(job));
  }

  async #training(jobId: string): Promise<void> {
    const path = `/v1/trainings/${jobId}`;
    const job = await this.#client.get<TrainingJob>(path);
    const metrics = await this.#client.get<TrainingMetrics>(`${path}/metrics`);
    const ended = job.finished_at !== null;
    if (!ended) this.#tellStatus(job, describeTraining(job, metrics));
    for (const news of this.#toldOf(job.id).news.take(metrics))
      if (news.type === 'checkpoint') this.#version(job, news, ended);
    if (ended) this.#tellStatus(job, describeTraining(job, metrics));
  }

  /** A version is told with its validation loss, which is measured after it was published and logged by nobody. */
  #version(job: TrainingJob, news: TrainingNews & { type: 'checkpoint' }, ended: boolean): void {
    const { lora, epoch, validationLoss } = news;
    if (validationLoss === null && job.input.validation_every !== undefined && !ended) {
      this.#toldOf(job.id).news.forget(news);
      setTimeout(() => this.notice(job.id), LOSS_MS).unref();
      return;
    }
    const loss = validationLoss === null ? '' : `, validation loss ${validationLoss.toFixed(4)}`;
    this.#tell('trainer', `${job.id} ${lora} after epoch ${epoch}/${job.input.max_epochs}${loss}`);
  }

  #tellStatus({ id, kind, status }: GenerationJob | TrainingJob, line: string | null): void {
    const told = this.#toldOf(id);
    if (told.status === status) return;
    told.status = status;
    if (line !== null) this.#tell(kind === 'training' ? 'trainer' : 'gpu-worker', line);
  }

  #toldOf(jobId: string): Told {
    const told = this.#told.get(jobId) ?? { news: new TrainingNewsReader() };
    this.#told.set(jobId, told);
    // Maps keep the order of insertion: the oldest job goes first.
    for (const [oldest] of this.#told) if (this.#told.size > REMEMBERED) this.#told.delete(oldest);
    return told;
  }
}

/** One line about a generation's present state; null for what needs none. */
export function describe(job: GenerationJob): string | null {
  const subject = `${job.id} ${dim(`"${shorten(job.input.prompt, 48)}"`)}`;
  switch (job.status) {
    case 'queued':
      return null;
    case 'running':
      return `painting ${subject}`;
    case 'succeeded': {
      const urls = (job.output?.images ?? []).map(({ url }) => url).join(' ');
      const took = job.timings?.total_ms === undefined ? '' : ` in ${duration(job.timings.total_ms)}`;
      return `${green('done')} ${subject}${took}: ${urls}`;
    }
    case 'failed':
      return `${red('failed')} ${subject}: ${reasonOf(job)}`;
    case 'canceled':
      return `canceled ${subject}`;
    default: {
      const never: never = job.status;
      return never;
    }
  }
}

/** One line about a training's present state; null for what needs none. */
export function describeTraining(job: TrainingJob, metrics: TrainingMetrics): string | null {
  const subject = `${job.id} ${dim(`"${job.input.name}"`)}`;
  switch (job.status) {
    case 'queued':
      return null;
    case 'running':
      return `training ${subject}`;
    case 'succeeded': {
      const lora = job.output?.lora ?? job.input.name;
      const loss = lossOf(metrics);
      return `${green('trained')} ${subject}${loss === null ? '' : `, ${loss}`}: ${useCommand(lora, job.input)}`;
    }
    case 'failed':
      return `${red('failed')} ${subject}: ${reasonOf(job)}`;
    case 'canceled':
      return `canceled ${subject}`;
    default: {
      const never: never = job.status;
      return never;
    }
  }
}

function reasonOf({ error }: GenerationJob | TrainingJob): string {
  return `${error?.message ?? 'no reason given'} ${dim(`(${error?.code ?? '?'})`)}`;
}
