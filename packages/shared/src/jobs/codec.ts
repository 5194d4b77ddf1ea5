import type { JobKind, JobStatus } from '../contracts/job.ts';
import type { JobRecord } from './record.ts';

/** The record as the fields of a Redis hash: objects as JSON, the rest as text; null values are left out. */
export function encodeRecord(record: Partial<JobRecord>): Record<string, string> {
  const fields: Record<string, string> = {};
  for (const [name, value] of Object.entries(record)) {
    if (value === null || value === undefined) continue;
    fields[name] = typeof value === 'object' ? JSON.stringify(value) : String(value);
  }
  return fields;
}

/** The inverse of {@link encodeRecord}; null for the empty hash that Redis gives for a missing key. */
export function decodeRecord(fields: Record<string, string>): JobRecord | null {
  const { id, tenant, kind, status } = fields;
  if (!id || !tenant || !kind || !status) return null;
  const json = (name: string): unknown => {
    const text = fields[name];
    return text === undefined ? null : JSON.parse(text);
  };
  return {
    id,
    tenant,
    kind: kind as JobKind,
    status: status as JobStatus,
    input: json('input'),
    progress: json('progress'),
    output: json('output'),
    error: json('error'),
    timings: json('timings'),
    attempts: Number(fields['attempts'] ?? 0),
    attempt: fields['attempt'] ?? null,
    worker: fields['worker'] ?? null,
    metadata: json('metadata'),
    webhook: json('webhook'),
    created_at: fields['created_at']!,
    started_at: fields['started_at'] ?? null,
    finished_at: fields['finished_at'] ?? null,
    cancel_requested_at: fields['cancel_requested_at'] ?? null,
  } as JobRecord;
}

/** The reply of HGETALL inside a script: names and values in turn. */
export function fromPairs(pairs: readonly string[]): Record<string, string> {
  const fields: Record<string, string> = {};
  for (let i = 0; i + 1 < pairs.length; i += 2) fields[pairs[i]!] = pairs[i + 1]!;
  return fields;
}
