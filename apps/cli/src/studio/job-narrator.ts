import type { GenerationJob, JobStatus } from '@atelier/shared';
import type { StudioClient } from '../client.ts';
import { dim, duration, green, red, shorten } from '../output.ts';

const REMEMBERED = 1000;

/**
 * Tells what happens to generations, one line for each change. A log line that carries a job id is the hint that
 * something may have changed; what is told comes from the API, and so is what a client sees.
 */
export class JobNarrator {
  readonly #client: StudioClient;
  readonly #tell: (line: string) => void;
  readonly #told = new Map<string, JobStatus>();
  readonly #looking = new Set<string>();
  /** Jobs with a hint that came during a look, which may have been too early to see the change. */
  readonly #again = new Set<string>();

  constructor(client: StudioClient, tell: (line: string) => void) {
    this.#client = client;
    this.#tell = tell;
  }

  notice(jobId: string): void {
    if (this.#looking.has(jobId)) {
      this.#again.add(jobId);
      return;
    }
    this.#looking.add(jobId);
    void this.#look(jobId).finally(() => {
      this.#looking.delete(jobId);
      if (this.#again.delete(jobId)) this.notice(jobId);
    });
  }

  async #look(jobId: string): Promise<void> {
    // An API that is stopping answers nothing; the next start lists the job all the same.
    const job = await this.#client.get<GenerationJob>(`/v1/generations/${jobId}`).catch(() => null);
    if (!job || this.#told.get(jobId) === job.status) return;
    this.#told.set(jobId, job.status);
    // Maps keep the order of insertion: the oldest job goes first.
    for (const [oldest] of this.#told) if (this.#told.size > REMEMBERED) this.#told.delete(oldest);
    const line = describe(job);
    if (line !== null) this.#tell(line);
  }
}

/** One line about a job's present state; null for what needs none. */
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
      return `${red('failed')} ${subject}: ${job.error?.message ?? 'no reason given'} ${dim(`(${job.error?.code ?? '?'})`)}`;
    case 'canceled':
      return `canceled ${subject}`;
    default: {
      const never: never = job.status;
      return never;
    }
  }
}
