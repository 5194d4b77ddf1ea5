/**
 * Edit distance between two short strings: insertions, deletions, substitutions and swaps of neighbours count 1
 * (optimal string alignment).
 */
export function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, substitution);
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (isSwap) next[j] = Math.min(next[j]!, before[j - 2]! + 1);
    }
    before = row;
    row = next;
  }
  return row[b.length]!;
}

/**
 * The candidate that `found` was probably meant to be, or undefined when none is close: at most a third of its
 * letters differ, case aside.
 *
 * @example suggest('step', ['steps', 'seed']) // 'steps'
 */
export function suggest(found: string, candidates: readonly string[]): string | undefined {
  // The cost is quadratic, and a name of this length was not a slip of the finger.
  if (found.length > 64) return undefined;
  let best: { candidate: string; distance: number } | undefined;
  for (const candidate of candidates) {
    const distance = editDistance(found.toLowerCase(), candidate.toLowerCase());
    const close = distance <= Math.max(1, Math.floor(Math.max(found.length, candidate.length) / 3));
    if (close && distance < (best?.distance ?? Infinity)) best = { candidate, distance };
  }
  return best?.candidate;
}
