/** Where an entry belongs. */
export interface EntryPath {
  kind: 'image' | 'prompt';
  /** What an image and its prompt have in common: `001`. */
  stem: string;
  /** As it is stored. */
  path: string;
}

export type NameVerdict = EntryPath | { refused: string } | { skipped: true };

const IMAGE = /^images\/(\d{1,9})\.(png|jpg|jpeg|webp)$/i;
const PROMPT = /^prompts\/(\d{1,9})\.txt$/i;
const ARCHIVE = /\.(zip|tar|gz|tgz|bz2|xz|zst|7z|rar|jar|cab|iso)$/i;
const LAYOUT = 'allowed are images/NNN.png, .jpg, .jpeg or .webp and prompts/NNN.txt, NNN a number';

/** What an operating system puts beside files without being asked. */
function isClutter(name: string): boolean {
  const file = name.slice(name.lastIndexOf('/') + 1);
  return (
    name.startsWith('__MACOSX/') ||
    ['.DS_Store', 'Thumbs.db', 'desktop.ini'].includes(file) ||
    file.startsWith('._')
  );
}

/**
 * Judges a name by itself. Nothing is ever written under a name that a client gave but those that this lets pass,
 * and these are digits with a known folder and extension.
 */
export function judgeName(name: string): NameVerdict {
  if (name.includes('\\')) return { refused: `has a backslash; ${LAYOUT}` };
  if (name.startsWith('/') || /^[A-Za-z]:/.test(name)) return { refused: `is an absolute path; ${LAYOUT}` };
  if (name.split('/').includes('..')) return { refused: `leads out of the dataset; ${LAYOUT}` };
  if (name === 'images/' || name === 'prompts/' || isClutter(name)) return { skipped: true };
  if (ARCHIVE.test(name)) return { refused: `is an archive inside of the dataset; ${LAYOUT}` };
  const [, stem, extension] = IMAGE.exec(name) ?? [];
  if (stem !== undefined) return { kind: 'image', stem, path: `images/${stem}.${extension!.toLowerCase()}` };
  const prompt = PROMPT.exec(name)?.[1];
  if (prompt !== undefined) return { kind: 'prompt', stem: prompt, path: `prompts/${prompt}.txt` };
  return { refused: `is not part of a dataset; ${LAYOUT}` };
}
