import { AtelierError } from '../errors.ts';

const MAX_KEY = 512;
const SEGMENT = /^[A-Za-z0-9._=@+-]{1,200}$/;

/**
 * Refuses what the two stores could understand differently, or what would leave the folder of a FolderStore.
 * @throws AtelierError `validation_failed`
 */
export function checkKey(key: string): void {
  const segments = key.split('/');
  const sound = segments.every((segment) => SEGMENT.test(segment) && segment !== '.' && segment !== '..');
  if (!sound || key.length > MAX_KEY) refuse('object key', key, 'non-empty segments');
}

/** A prefix may end anywhere inside a key, also after a slash or be empty. */
export function checkPrefix(prefix: string): void {
  const last = prefix.lastIndexOf('/');
  if (last > 0) checkKey(prefix.slice(0, last));
  const rest = prefix.slice(last + 1);
  if (last === 0 || (rest !== '' && !SEGMENT.test(rest)) || prefix.length > MAX_KEY)
    refuse('object prefix', prefix, 'segments');
}

function refuse(what: string, found: string, allowed: string): never {
  throw new AtelierError(
    'validation_failed',
    `The ${what} ${JSON.stringify(found.slice(0, 100))} is not valid: ${allowed} of letters, digits and . _ = @ + - ` +
      `separated by /, none of them . or .., at most ${MAX_KEY} characters`,
  );
}
