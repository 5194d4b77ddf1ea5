import { type JobKind, ListQuery, jobKindOf } from '@atelier/shared';
import type { ApiDeps } from './deps.ts';
import { type RecordOf, isOf } from './job-record.ts';
import { invalid, validate } from './validation/validate.ts';

/** Records read for one page at most; a rare status continues on the next page. */
const MAX_SCANNED = 1_000;
const BATCH = 100;

/**
 * A page of a tenant's jobs of one kind, newest first.
 *
 * @param query the query of the request
 * @returns `cursor` for the next page, null on the last
 * @throws AtelierError validation_failed
 */
export async function listJobs<Kind extends JobKind>(
  jobs: ApiDeps['jobs'],
  tenant: string,
  kind: Kind,
  query: unknown,
): Promise<{ records: RecordOf<Kind>[]; cursor: string | null }> {
  const { cursor: from, limit, status } = validate(ListQuery, query, 'query');
  if (from !== undefined && jobKindOf(from) !== kind) {
    throw invalid([
      { field: 'cursor', message: 'found another text, allowed is next_cursor of the page before' },
    ]);
  }
  const records: RecordOf<Kind>[] = [];
  let cursor = from;
  for (let scanned = 0; scanned < MAX_SCANNED; scanned += BATCH) {
    const size = status ? BATCH : limit;
    const page = await jobs.list(tenant, kind, { limit: size, ...(cursor ? { cursor } : {}) });
    for (const [index, record] of page.records.entries()) {
      if (!isOf(record, kind) || (status && record.status !== status)) continue;
      records.push(record);
      if (records.length < limit) continue;
      // The id of a job is the cursor of what comes after it.
      const isLast = index === page.records.length - 1 && page.cursor === null;
      return { records, cursor: isLast ? null : record.id };
    }
    if (page.cursor === null) return { records, cursor: null };
    cursor = page.cursor;
  }
  return { records, cursor: cursor ?? null };
}
