import { AtelierError } from '@atelier/shared';

/** What a dataset may take; from the environment, see settings.ts. */
export interface DatasetLimits {
  /** Bytes of the request, and of all files after unpacking. */
  readonly maxBytes: number;
  readonly maxImages: number;
  /** Bytes of one image's file. */
  readonly maxImageBytes: number;
  /** Unpacked bytes per packed byte of one file of an archive. */
  readonly maxRatio: number;
}

/**
 * Files that an upload may have: images, their prompts, and beside each what macOS adds, which is left out.
 */
export const maxFiles = ({ maxImages }: DatasetLimits): number => 4 * maxImages + 64;

export function tooManyFiles(found: number | string, limits: DatasetLimits): AtelierError {
  return new AtelierError(
    'payload_too_large',
    `body: found ${found} files, allowed are at most ${limits.maxImages} images, each with its prompt`,
  );
}
