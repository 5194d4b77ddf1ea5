/** More than modules have names; the time to look all of them up is bounded. */
export const MAX_PATTERNS = 4096;

interface Pattern {
  readonly value: number;
  matches(path: string): boolean;
}

/** Values by patterns of module paths. As in PEFT the first pattern of the file that matches counts. */
export class Patterns {
  readonly #patterns: readonly Pattern[];

  constructor(patterns: readonly Pattern[]) {
    this.#patterns = patterns;
  }

  find(path: string): number | undefined {
    return this.#patterns.find((pattern) => pattern.matches(path))?.value;
  }
}

const PATH = /^\^?[\w.]+\$?$/;
/** Letters, dots, digits, groups and alternatives; what may repeat is one character. */
const SIMPLE = /^\^?(?:\w|\.[*+]?|\\\.|(?:\\d|\[0-9\])[*+]?|[(|)](?![*+]))+\$?$/;
/** A file chooses the pattern: each repetition multiplies the time to match by the length of a path. */
const MAX_REPETITIONS = 2;

/**
 * PEFT's matching of a pattern, a regular expression, with a module path: the whole path, or its end after a dot
 * (`get_pattern_key` of PEFT). Undefined for an expression beyond paths and simple ones.
 */
export function compilePattern(pattern: string): Pattern['matches'] | undefined {
  if (PATH.test(pattern)) {
    const path = pattern.replace(/^\^|\$$/g, '');
    if (pattern.startsWith('^')) return (candidate) => candidate === path;
    return (candidate) => candidate === path || candidate.endsWith(`.${path}`);
  }
  if (pattern.length > 200 || !SIMPLE.test(pattern)) return undefined;
  if ((pattern.match(/[*+]/g) ?? []).length > MAX_REPETITIONS) return undefined;
  try {
    const expression = new RegExp(`^(?:.*\\.)?(?:${pattern})$`);
    return (candidate) => expression.test(candidate);
  } catch {
    return undefined;
  }
}
