import sharp from 'sharp';

export interface SheetPicture {
  /** Encoded in any format that sharp reads. */
  data: Uint8Array;
  caption: string;
  /** One more line, less prominent. */
  note: string;
}

export interface SheetOptions {
  columns: number;
  /** Side of the square that each picture is fitted into, in pixels. */
  cell: number;
}

const GAP = 16;
const CAPTION_LINES = 2;
const FONT_SIZE = 14;
const LINE_HEIGHT = FONT_SIZE + 4;
const CAPTION_HEIGHT = (CAPTION_LINES + 1) * LINE_HEIGHT + 8;
/** A sans-serif character's usual width as a part of its size. */
const CHARACTER_WIDTH = 0.54;
const BACKGROUND = '#f6f5f2';
const INK = '#33312e';
const NOTE_INK = '#8a857d';

/** All pictures in a grid with their captions below them, as a PNG. */
export async function contactSheet(
  pictures: readonly SheetPicture[],
  options: SheetOptions,
): Promise<Buffer> {
  const { columns, cell } = options;
  const rows = Math.ceil(pictures.length / columns);
  const width = columns * (cell + GAP) + GAP;
  const height = rows * (cell + CAPTION_HEIGHT + GAP) + GAP;
  const places = pictures.map((_, i) => ({
    left: GAP + (i % columns) * (cell + GAP),
    top: GAP + Math.floor(i / columns) * (cell + CAPTION_HEIGHT + GAP),
  }));
  const tiles = await Promise.all(
    pictures.map(async ({ data }, i) => ({
      // Small models make small pictures: enlarged by whole pixels they stay honest.
      input: await sharp(data)
        .resize(cell, cell, { fit: 'contain', background: BACKGROUND, kernel: 'nearest' })
        .png()
        .toBuffer(),
      ...places[i]!,
    })),
  );
  const captions = pictures.flatMap((picture, i) => captionLines(picture, cell, places[i]!));
  const text = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}">
<g font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="${FONT_SIZE}">${captions.join('')}</g>
</svg>`;
  return sharp({ create: { width, height, channels: 3, background: BACKGROUND } })
    .composite([...tiles, { input: Buffer.from(text), left: 0, top: 0 }])
    .removeAlpha()
    .png()
    .toBuffer();
}

/** SVG text below a picture: the caption, broken between words, and the note. */
function captionLines(
  { caption, note }: SheetPicture,
  cell: number,
  place: { left: number; top: number },
): string[] {
  const lines = wrap(caption, Math.floor(cell / (FONT_SIZE * CHARACTER_WIDTH))).slice(0, CAPTION_LINES);
  return [...lines.map((line) => ({ line, fill: INK })), { line: note, fill: NOTE_INK }].map(
    ({ line, fill }, i) => {
      const y = place.top + cell + (i + 1) * LINE_HEIGHT;
      return `<text x="${place.left}" y="${y}" fill="${fill}">${escapeXml(line)}</text>`;
    },
  );
}

/** Greedy line breaking at `width` characters. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/).filter(Boolean)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return line === '' ? lines : [...lines, line];
}

function escapeXml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
