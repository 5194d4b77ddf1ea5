import { invalid, shown } from './problems.ts';

export type JsonObject = Record<string, unknown>;

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * Parses bytes that must be one JSON object in UTF-8 in which no object repeats a key. JSON.parse keeps the last of
 * repeated keys, other readers the first: such a file would mean different things to different programs.
 *
 * @param what names the text in errors, for example "header"
 */
export function parseJsonObject(file: string, what: string, bytes: Uint8Array): JsonObject {
  let value: unknown;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw invalid(file, `${what} is not UTF-8`, {}, cause);
  }
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw invalid(file, `${what} is not JSON: ${(cause as Error).message}`, {}, cause);
  }
  if (!isObject(value)) throw invalid(file, `${what} is ${shown(value)}; a JSON object was expected`);
  const key = repeatedKey(text);
  if (key !== undefined) throw invalid(file, `${what} has the key ${shown(key)} twice`, { key });
  return value;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** The first key that an object of `text` repeats. `text` is known to be valid JSON, which keeps the scan short. */
function repeatedKey(text: string): string | undefined {
  const open: Set<string>[] = [];
  const colon = /[ \t\r\n]*:/y;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '{' || character === '[') open.push(new Set());
    else if (character === '}' || character === ']') open.pop();
    if (text.charCodeAt(i) !== QUOTE) continue;
    const begin = i;
    for (i++; text.charCodeAt(i) !== QUOTE; i++) if (text.charCodeAt(i) === BACKSLASH) i++;
    colon.lastIndex = i + 1;
    if (!colon.test(text)) continue;
    const key = JSON.parse(text.slice(begin, i + 1)) as string;
    const keys = open[open.length - 1]!;
    if (keys.has(key)) return key;
    keys.add(key);
  }
  return undefined;
}
