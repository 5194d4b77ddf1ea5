import { randomUUIDv7 } from 'node:crypto';
import type { JobKind } from './contracts/job.ts';

const PREFIX = { generation: 'gen', training: 'trn' } as const satisfies Record<JobKind, string>;

/** A new job id such as `gen_0199...`: sorts by the millisecond of creation; BullMQ forbids `:` and plain integers in it. */
export function newJobId(kind: JobKind): string {
  return `${PREFIX[kind]}_${randomUUIDv7().replaceAll('-', '')}`;
}

/** A new token that names one attempt of one job; part of the keys of the objects which that attempt writes. */
export function newAttemptToken(): string {
  return randomUUIDv7().replaceAll('-', '');
}

/** The kind that an id of {@link newJobId} belongs to; null for any other string. */
export function jobKindOf(id: string): JobKind | null {
  const match = /^(gen|trn)_[0-9a-f]{32}$/.exec(id);
  if (!match) return null;
  return match[1] === 'gen' ? 'generation' : 'training';
}
