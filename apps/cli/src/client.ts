import { setDefaultAutoSelectFamilyAttemptTimeout } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { GenerationJob, TrainingJob } from '@atelier/shared';
import { CliError } from './errors.ts';

/** Where "atelier up" listens in this environment. */
export const DEFAULT_URL = `http://localhost:${process.env['ATELIER_PORT'] ?? 6006}`;
const POLL_MS = 150;
/** The API may restart while a job waits in the queue; that is no reason to give up on the job. */
const RECONNECT_MS = 30_000;
const PASSING = /^(api_unreachable|queue_unavailable|store_unavailable|http_5\d\d)$/;

/**
 * "localhost" has two addresses, and Node gives each attempt 250 ms before it takes the next one and in the end gives
 * up: on a machine that is busy making pictures that is too short for a connection to itself.
 */
setDefaultAutoSelectFamilyAttemptTimeout(5_000);

interface Problem {
  code?: string;
  title?: string;
  detail?: string;
  errors?: { field: string; message: string }[];
}

/** The few calls of the job API that this program needs. */
export class StudioClient {
  readonly url: string;
  readonly #key: string | undefined;

  /** @param key one of the studio's API keys; from `ATELIER_API_KEY`, else the first of `ATELIER_API_KEYS` */
  constructor(
    url: string,
    key = process.env['ATELIER_API_KEY'] ?? process.env['ATELIER_API_KEYS']?.split(',')[0],
  ) {
    this.url = url.replace(/\/+$/, '');
    this.#key = key?.trim() || undefined;
  }

  /**
   * @param path below the API's URL, or a whole URL as the API gives for pictures
   * @throws CliError with the problem's code, or `api_unreachable`
   */
  async request(path: string, init: RequestInit = {}): Promise<Response> {
    if (!URL.canParse(this.url)) {
      throw new CliError('invalid_url', `--url ${this.url}: allowed is a URL such as ${DEFAULT_URL}`);
    }
    const target = new URL(path, `${this.url}/`);
    const headers = new Headers(init.headers);
    // A picture may be on another host, such as a bucket: the key is not for that one.
    if (this.#key && target.origin === new URL(this.url).origin)
      headers.set('authorization', `Bearer ${this.#key}`);
    let response: Response;
    try {
      response = await fetch(target, { ...init, headers });
    } catch (cause) {
      throw new CliError(
        'api_unreachable',
        `No atelier answers at ${this.url}. Start it with "npm start", or name another one with --url.`,
        { cause },
      );
    }
    if (response.ok) return response;
    const problem = (await response.json().catch(() => ({}))) as Problem;
    const said =
      problem.detail ?? problem.title ?? `${this.url} answered ${response.status} ${response.statusText}`;
    throw new CliError(
      problem.code ?? `http_${response.status}`,
      response.status === 401 ? `${said}; this program takes it from ATELIER_API_KEY` : said,
      { errors: problem.errors ?? [] },
    );
  }

  async get<T>(path: string): Promise<T> {
    return (await (await this.request(path)).json()) as T;
  }

  post<T>(path: string, body: unknown): Promise<T> {
    return this.#send('POST', path, body);
  }

  patch<T>(path: string, body: unknown): Promise<T> {
    return this.#send('PATCH', path, body);
  }

  async download(path: string): Promise<Uint8Array> {
    return new Uint8Array(await (await this.request(path)).arrayBuffer());
  }

  async isReady(): Promise<boolean> {
    return fetch(`${this.url}/readyz`, { signal: AbortSignal.timeout(2000) }).then(
      (response) => response.ok,
      () => false,
    );
  }

  submit(request: Record<string, unknown>): Promise<GenerationJob> {
    return this.post<GenerationJob>('/v1/generations', request);
  }

  /**
   * Follows a job to its end; `onChange` is told at each look.
   * @throws CliError with the code of a failed job, `job_canceled` for a canceled one; AbortError when
   * `signal` ends the following, which leaves the job alone
   */
  async follow<J extends GenerationJob | TrainingJob>(
    submitted: J,
    onChange: (job: J) => void = () => {},
    signal?: AbortSignal,
  ): Promise<J> {
    let job = submitted;
    let lastAnswer = Date.now();
    for (;;) {
      onChange(job);
      if (job.status === 'succeeded') return job;
      if (job.status === 'failed' || job.status === 'canceled') {
        const { code, message } = job.error ?? {
          code: 'job_canceled',
          message: `Job ${job.id} was canceled`,
        };
        throw new CliError(code, message);
      }
      await sleep(POLL_MS, undefined, signal ? { signal } : {});
      try {
        job = await this.get<J>(`/v1/${job.kind}s/${job.id}`);
        lastAnswer = Date.now();
      } catch (error) {
        const passing = error instanceof CliError && PASSING.test(error.code);
        if (!passing || Date.now() - lastAnswer > RECONNECT_MS) throw error;
      }
    }
  }

  async #send<T>(method: string, path: string, body: unknown): Promise<T> {
    const headers = { 'content-type': 'application/json' };
    const response = await this.request(path, { method, headers, body: JSON.stringify(body) });
    return (await response.json()) as T;
  }
}
