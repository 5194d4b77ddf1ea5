import type { Redis } from 'ioredis';
import type { LoraPatch, LoraProvenance, LoraVersion } from '../contracts/lora.ts';
import { AtelierError } from '../errors.ts';
import type { JobStore } from '../jobs/job-store.ts';
import { withLock } from '../lock.ts';
import type { ObjectStore } from '../object-store/types.ts';
import { LoraBucket, newSettings } from './bucket.ts';
import { LoraIndex, lockKey } from './index-store.ts';
import { formatPin } from './names.ts';
import { latestOf } from './record.ts';
import type { LoraRecord } from './record.ts';

/** A checked file that is to become a version. */
export interface NewLoraVersion extends Pick<
  LoraVersion,
  'size' | 'sha256' | 'dialects' | 'rank' | 'modules' | 'base_model' | 'warnings'
> {
  /** Absolute path of the file on this machine. */
  path: string;
  provenance: Omit<LoraProvenance, 'imported_at'>;
}

/** Told about objects that are not what they should be. */
export type ProblemListener = (problems: readonly string[]) => void;

const BATCH = 100;
/** Numbers tried when others take them; more than one is taken only when Redis has lost the lock. */
const MAX_TRIES = 10;

/**
 * The LoRAs of every tenant: the object store is the truth (see {@link LoraBucket}), Redis has an index of it.
 * Changes write the objects first and then the index of that name from what is there; reads ask the index, which is
 * rebuilt when Redis has lost it.
 *
 * ### Deleting what a job needs
 * Whoever accepts a job reads the index, writes the record, and reads the index again; a delete or rename leaves the
 * index first and then looks for jobs. Whichever comes second sees the other.
 *
 * Every method rejects with AtelierError `queue_unavailable` or `store_unavailable` while the part is away.
 */
export class LoraRegistry {
  readonly #redis: Redis;
  readonly #jobs: Pick<JobStore, 'open'>;
  readonly #bucket: LoraBucket;
  readonly #index: LoraIndex;
  readonly #onProblems: ProblemListener;
  readonly #rebuilding = new Map<string, Promise<void>>();

  constructor(
    store: ObjectStore,
    redis: Redis,
    jobs: Pick<JobStore, 'open'>,
    onProblems: ProblemListener = () => {},
  ) {
    this.#redis = redis;
    this.#jobs = jobs;
    this.#bucket = new LoraBucket(store);
    this.#index = new LoraIndex(redis);
    this.#onProblems = onProblems;
  }

  /** null when the tenant has no such LoRA. */
  async get(tenant: string, name: string): Promise<LoraRecord | null> {
    return (await this.getMany(tenant, [name]))[0] ?? null;
  }

  /** One entry for each name, undefined where there is no such LoRA. */
  getMany(tenant: string, names: readonly string[]): Promise<(LoraRecord | undefined)[]> {
    return this.#indexed(tenant, () => this.#index.get(tenant, names));
  }

  /** All names in order. */
  names(tenant: string): Promise<string[]> {
    return this.#indexed(tenant, () => this.#index.names(tenant));
  }

  /** A page in order of name; `cursor` is that of the page before. */
  async list(
    tenant: string,
    options: { cursor?: string | undefined; limit?: number; tag?: string | undefined } = {},
  ): Promise<{ records: LoraRecord[]; cursor: string | null }> {
    const { cursor = '', limit = 50, tag } = options;
    const names = (await this.names(tenant)).filter((name) => name > cursor);
    const records: LoraRecord[] = [];
    for (let i = 0; i < names.length; i += BATCH) {
      for (const record of await this.getMany(tenant, names.slice(i, i + BATCH))) {
        if (!record || (tag !== undefined && !record.tags.includes(tag))) continue;
        if (records.length === limit) return { records, cursor: records.at(-1)!.name };
        records.push(record);
      }
    }
    return { records, cursor: null };
  }

  /**
   * Makes a checked file the next version of a LoRA, which it creates when there is none. The bytes of the latest
   * version once more make no new one.
   */
  add(
    tenant: string,
    name: string,
    file: NewLoraVersion,
  ): Promise<{ record: LoraRecord; version: LoraVersion; created: boolean }> {
    return this.#locked(tenant, [name], async () => {
      for (let tries = 1; ; tries++) {
        const contents = await this.#bucket.read(tenant, name);
        const latest = contents.record && latestOf(contents.record);
        if (contents.record && latest?.sha256 === file.sha256) {
          await this.#index.put(tenant, contents.record);
          return { record: contents.record, version: latest, created: false };
        }
        if (contents.settings?.moving_from !== undefined)
          throw new AtelierError('conflict', `${contents.settings.moving_from} is being renamed to ${name}`);
        const version = contents.highest + 1;
        const { path, provenance, ...facts } = file;
        const now = new Date().toISOString();
        try {
          if (!contents.record) await this.#bucket.writeSettings(tenant, name, newSettings(now));
          await this.#bucket.addVersion(tenant, name, path, {
            version,
            ...facts,
            provenance: { ...provenance, imported_at: now },
          });
        } catch (error) {
          const taken = error instanceof AtelierError && error.code === 'conflict' && tries < MAX_TRIES;
          if (taken) continue;
          throw error;
        }
        const record = await this.#refresh(tenant, name);
        const added = record?.versions.find((known) => known.version === version);
        if (!record || !added)
          throw new AtelierError('conflict', `${formatPin(name, version)} was deleted while it was imported`);
        return { record, version: added, created: true };
      }
    });
  }

  /**
   * Changes settings, then the name.
   * @throws AtelierError `not_found`; `conflict` when the new name is taken; `lora_in_use` for a rename while a job
   * that has not ended uses the LoRA
   */
  async update(tenant: string, name: string, patch: LoraPatch): Promise<LoraRecord> {
    const { name: newName = name, ...changes } = patch;
    return this.#locked(tenant, newName === name ? [name] : [name, newName], async () => {
      const { record } = await this.#bucket.read(tenant, name);
      if (!record) throw unknown(name);
      const settings = { ...settingsOf(record), ...definedOf(changes), updated_at: new Date().toISOString() };
      if (newName === name) {
        await this.#bucket.writeSettings(tenant, name, settings);
        return (await this.#refresh(tenant, name)) ?? { ...record, ...settings };
      }
      await this.#whileUnused(tenant, name, () => this.#move(tenant, record, newName, settings));
      return (await this.#refresh(tenant, newName)) ?? { ...record, ...settings, name: newName };
    });
  }

  /**
   * Removes a LoRA with all its versions; their numbers are not used again.
   * @throws AtelierError `not_found`; `lora_in_use` while a job that has not ended uses it
   */
  async delete(tenant: string, name: string): Promise<void> {
    await this.#locked(tenant, [name], async () => {
      const contents = await this.#bucket.read(tenant, name);
      if (!contents.record) throw unknown(name);
      await this.#whileUnused(tenant, name, () => this.#bucket.delete(tenant, name, contents));
    });
  }

  /** Makes the index what the object store says. Called at start; reads call it when Redis has lost the index. */
  rebuild(tenant: string): Promise<void> {
    const running = this.#rebuilding.get(tenant);
    if (running) return running;
    const rebuild = this.#rebuild(tenant).finally(() => this.#rebuilding.delete(tenant));
    this.#rebuilding.set(tenant, rebuild);
    return rebuild;
  }

  async #rebuild(tenant: string): Promise<void> {
    let mark: string;
    do {
      mark = await this.#index.beginRebuild(tenant);
      const names = new Set(await this.#bucket.names(tenant));
      for (const name of await this.#index.known(tenant)) names.add(name);
      for (const name of names)
        await this.#locked(tenant, [name], async () => {
          await this.#refresh(tenant, name);
        });
    } while (!(await this.#index.endRebuild(tenant, mark)));
  }

  async #move(
    tenant: string,
    record: LoraRecord,
    to: string,
    settings: ReturnType<typeof settingsOf>,
  ): Promise<void> {
    const target = await this.#bucket.read(tenant, to);
    const unfinished = target.settings?.moving_from;
    if (target.record || (unfinished !== undefined && unfinished !== record.name))
      throw new AtelierError('conflict', `A LoRA named ${to} exists`, {
        errors: [{ field: 'name', message: `${to} is taken` }],
      });
    // What is there was deleted before, or is what an earlier try at this rename left behind.
    await this.#bucket.writeSettings(tenant, to, { ...settings, moving_from: record.name });
    await this.#bucket.purge(target.keys.filter((key) => !key.endsWith('/lora.json')));
    for (const version of record.versions) await this.#bucket.copyVersion(tenant, record.name, to, version);
    await this.#bucket.writeSettings(tenant, to, settings);
    await this.#bucket.delete(tenant, record.name, await this.#bucket.read(tenant, record.name));
  }

  /** Takes the name out of the index, where new jobs look, and does `change` unless a job needs the LoRA. */
  async #whileUnused(tenant: string, name: string, change: () => Promise<void>): Promise<void> {
    await this.#index.remove(tenant, name);
    try {
      const users = await this.#users(tenant, name);
      if (users.length > 0)
        throw new AtelierError(
          'lora_in_use',
          `${name} is used by ${users.length} ${users.length === 1 ? 'job that has' : 'jobs that have'} not ended: ` +
            `${users.slice(0, 3).join(', ')}${users.length > 3 ? ', …' : ''}`,
        );
      await change();
    } finally {
      await this.#refresh(tenant, name);
    }
  }

  async #users(tenant: string, name: string): Promise<string[]> {
    const users: string[] = [];
    for await (const job of this.#jobs.open('generation')) {
      if (job.kind !== 'generation' || job.tenant !== tenant) continue;
      if (job.input.styles.some(({ lora }) => lora.startsWith(`${name}@`))) users.push(job.id);
    }
    return users;
  }

  /** Copies one LoRA from the object store into the index. */
  async #refresh(tenant: string, name: string): Promise<LoraRecord | null> {
    try {
      const { record, problems } = await this.#bucket.read(tenant, name);
      if (problems.length > 0) this.#onProblems(problems);
      if (record) await this.#index.put(tenant, record);
      else await this.#index.remove(tenant, name);
      return record;
    } catch (error) {
      // With Redis away too this fails as well, and its return has the index rebuilt.
      await this.#index.markBroken(tenant).catch(() => {});
      throw error;
    }
  }

  async #indexed<T>(tenant: string, read: () => Promise<T | null>): Promise<T> {
    for (;;) {
      const answer = await read();
      if (answer !== null) return answer;
      await this.rebuild(tenant);
    }
  }

  #locked<T>(tenant: string, names: readonly string[], work: () => Promise<T>): Promise<T> {
    return withLock(
      this.#redis,
      names.map((name) => lockKey(tenant, name)),
      work,
    );
  }
}

function unknown(name: string): AtelierError {
  return new AtelierError('not_found', `No LoRA has the name ${JSON.stringify(name.slice(0, 64))}`);
}

function settingsOf(record: LoraRecord) {
  const { description, default_weight, trigger_words, tags, created_at, updated_at } = record;
  return { description, default_weight, trigger_words, tags, created_at, updated_at };
}

function definedOf<T extends object>(object: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}
