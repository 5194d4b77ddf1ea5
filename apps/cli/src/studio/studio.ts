import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Config,
  JOB_KINDS,
  type ResolvedRedis,
  createRedis,
  listWorkers,
  resolveRedis,
} from '@atelier/shared';
import { StudioClient } from '../client.ts';
import { CliError } from '../errors.ts';
import { PROJECT } from '../settings.ts';
import { claimPort } from './port.ts';
import { type ServiceExit, ServiceProcess, type ServiceSpec } from './service-process.ts';

const READY_TIMEOUT_MS = 120_000;

export interface StudioOptions {
  config: Config;
  onLine: (service: string, line: string) => void;
  onPhase?: (text: string) => void;
}

/**
 * The whole system on one machine: Redis, API, worker and trainer as children of this process.
 *
 * ### Starting
 * The port is checked, Redis is found, the services start together; ready means that the API is ready and that
 * worker and trainer have registered.
 *
 * ### Stopping
 * In order: the API first, so that nothing new arrives; the worker finishes its job or gives it back; Redis last,
 * since the others need it to the end. `kill` is the impatient way.
 *
 * ### Failing
 * A part that ends without being asked settles `failed` with the reason; whoever runs the studio then stops it.
 */
export class Studio {
  readonly failed: Promise<CliError>;
  readonly #config: Config;
  readonly #options: StudioOptions;
  readonly #services: ServiceProcess[] = [];
  #fail: (reason: CliError) => void = () => {};
  #redis: ResolvedRedis | null = null;
  #port = 0;
  #stopping: Promise<void> | null = null;

  constructor(options: StudioOptions) {
    this.#options = options;
    this.#config = options.config;
    this.failed = new Promise((resolve) => (this.#fail = resolve));
  }

  get url(): string {
    const host = this.#config.ATELIER_HOST;
    // Names a browser can open: loopback and wildcard addresses are both this machine.
    const local = /^(127\..*|::1|0\.0\.0\.0|::|localhost)$/.test(host);
    return `http://${local ? 'localhost' : host.includes(':') ? `[${host}]` : host}:${this.#port}`;
  }

  /** Process ids by part, for whoever watches from outside. */
  get pids(): Record<string, number> {
    const pids = Object.fromEntries(this.#services.map(({ name, pid }) => [name, pid]));
    return this.#redis?.server ? { ...pids, redis: this.#redis.server.pid } : pids;
  }

  /**
   * Resolves when a job can be sent.
   * @throws CliError when a part cannot start; what has started still has to be stopped
   */
  async start(): Promise<void> {
    const config = this.#config;
    this.#port = await claimPort(config.ATELIER_HOST, config.ATELIER_PORT);
    this.#redis = await resolveRedis({
      dataDir: config.ATELIER_DATA_DIR,
      onDownload: (what) => this.#options.onPhase?.(`No Redis on this machine: fetching ${what}, once`),
    });
    if (this.#stopping) {
      await this.#redis.stop();
      return;
    }
    void this.#redis.server?.exited.then((exit) => this.#ended('Redis', exit));
    for (const spec of this.#specs()) {
      const service = new ServiceProcess(spec, {
        cwd: PROJECT,
        env: this.#environment(this.#redis.url),
        onLine: (line) => this.#options.onLine(spec.name, line),
      });
      this.#services.push(service);
      void service.exited.then((exit) => this.#ended(spec.name, exit));
    }
    await Promise.race([this.#ready(this.#redis.url), this.failed.then((reason) => Promise.reject(reason))]);
  }

  /** Ends everything in order; later calls wait for the first. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stopInOrder();
    return this.#stopping;
  }

  /** Ends every service at once, also during `stop`. Redis still writes its data: that takes no time. */
  kill(): void {
    for (const service of this.#services) service.kill();
    void this.stop();
  }

  async #stopInOrder(): Promise<void> {
    // Named order, not the order of starting: a service that is absent because the start failed is skipped.
    for (const name of ['api', 'gpu-worker', 'trainer']) {
      await this.#services.find((service) => service.name === name)?.stop();
    }
    await this.#redis?.stop();
  }

  #ended(name: string, { code, signal }: ServiceExit): void {
    if (this.#stopping) return;
    const how = signal ? `was killed by ${signal}` : `ended with exit code ${code}`;
    this.#fail(new CliError('service_ended', `${name} ${how}`));
  }

  #specs(): ServiceSpec[] {
    const graceMs = this.#config.ATELIER_SHUTDOWN_GRACE_MS + 10_000;
    return ['api', 'gpu-worker', 'trainer'].map((name) => ({
      name,
      script: join(PROJECT, 'apps', name, 'src', 'main.ts'),
      graceMs,
    }));
  }

  #environment(redisUrl: string): NodeJS.ProcessEnv {
    return {
      ...process.env,
      REDIS_URL: redisUrl,
      ATELIER_HOST: this.#config.ATELIER_HOST,
      ATELIER_PORT: String(this.#port),
      ATELIER_DATA_DIR: this.#config.ATELIER_DATA_DIR,
      ATELIER_CACHE_DIR: this.#config.ATELIER_CACHE_DIR,
    };
  }

  async #ready(redisUrl: string): Promise<void> {
    const client = new StudioClient(this.url);
    const redis = createRedis({ ...this.#config, REDIS_URL: redisUrl }, 'worker');
    try {
      for (const deadline = Date.now() + READY_TIMEOUT_MS; !this.#stopping; await sleep(100)) {
        const kinds = new Set((await listWorkers(redis)).map(({ kind }) => kind));
        if (JOB_KINDS.every((kind) => kinds.has(kind)) && (await client.isReady())) return;
        if (Date.now() > deadline) {
          throw new CliError('not_ready', `The studio was not ready after ${READY_TIMEOUT_MS / 1000} s`);
        }
      }
    } finally {
      redis.disconnect();
    }
  }
}
