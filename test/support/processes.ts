import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

interface ProcessRow {
  pid: number;
  parent: number;
  zombie: boolean;
}

/** Every process of this machine: from /proc where that is, since small Linux images have no `ps`. */
function processes(): ProcessRow[] {
  if (process.platform !== 'linux') {
    const rows = execFileSync('ps', ['-A', '-o', 'pid=,ppid=,state='], { encoding: 'utf8' })
      .trim()
      .split('\n');
    return rows.map((row) => toRow(row.trim().split(/\s+/)));
  }
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        // The second field is the program's name in parentheses, which may hold spaces.
        const [state, parent] = readFileSync(`/proc/${pid}/stat`, 'utf8')
          .replace(/^.*\) /s, '')
          .split(' ');
        return [toRow([pid, parent, state])];
      } catch {
        return [];
      }
    });
}

function toRow([pid, parent, state]: readonly (string | undefined)[]): ProcessRow {
  return { pid: Number(pid), parent: Number(parent), zombie: state?.startsWith('Z') ?? false };
}

/** The children of a process, theirs, and so on. */
export function descendants(pid: number): number[] {
  const all = processes();
  const of = (parent: number): number[] =>
    all.filter((row) => row.parent === parent).flatMap((row) => [row.pid, ...of(row.pid)]);
  return of(pid);
}

/** A zombie has ended: only its parent has not asked for its exit code yet. */
export function isRunning(pid: number): boolean {
  return processes().some((row) => row.pid === pid && !row.zombie);
}

/** Waits until none of the processes runs; returns those that still do after the time. */
export async function survivors(pids: readonly number[], timeoutMs: number): Promise<number[]> {
  for (const deadline = Date.now() + timeoutMs; ; await sleep(50)) {
    const left = pids.filter(isRunning);
    if (left.length === 0 || Date.now() > deadline) return left;
  }
}
