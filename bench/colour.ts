/** Mean of a picture's pixels in CIE L*a*b* (D65), and what is told of them. */
export interface Colour {
  /** Mean chroma √(a*² + b*²) of all pixels; 0 is grey, an sRGB primary has 100 to 130. */
  chroma: number;
  /** Mean L*a*b* of the four corners, where pictures of one thing show what they are painted on. */
  paper: Lab;
}

export type Lab = readonly [lightness: number, a: number, b: number];

/** Side of a corner as a part of the picture's. The outermost pixels are left out: edges of a canvas are there. */
const CORNER = 0.12;
const EDGE = 0.03;

/** D65, as sRGB (IEC 61966-2-1) defines it. */
const WHITE = [0.95047, 1, 1.08883] as const;

/** Measures an RGB8 picture [h, w, 3]. */
export function measure(pixels: Uint8Array, width: number, height: number): Colour {
  let chroma = 0;
  const paper = [0, 0, 0];
  let corners = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = (y * width + x) * 3;
      const lab = toLab(pixels[at]!, pixels[at + 1]!, pixels[at + 2]!);
      chroma += Math.hypot(lab[1], lab[2]);
      if (!inCorner(x / width) || !inCorner(y / height)) continue;
      corners++;
      for (let i = 0; i < 3; i++) paper[i]! += lab[i]!;
    }
  }
  return { chroma: chroma / (width * height), paper: paper.map((sum) => sum / corners) as unknown as Lab };
}

/** The mean of several pictures. */
export function meanColour(colours: readonly Colour[]): Colour {
  const mean = (pick: (colour: Colour) => number) =>
    colours.reduce((sum, colour) => sum + pick(colour), 0) / colours.length;
  return {
    chroma: mean(({ chroma }) => chroma),
    paper: [mean(({ paper }) => paper[0]), mean(({ paper }) => paper[1]), mean(({ paper }) => paper[2])],
  };
}

/** CIE 1976 colour difference; about 2 is just noticeable. */
export function deltaE(a: Lab, b: Lab): number {
  return Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}

/** sRGB bytes to CIE L*a*b* (CIE 15, with the exact constants 216/24389 and 24389/27). */
export function toLab(red: number, green: number, blue: number): Lab {
  const [r, g, b] = [LINEAR[red]!, LINEAR[green]!, LINEAR[blue]!];
  const x = f((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / WHITE[0]);
  const y = f((0.2126729 * r + 0.7151522 * g + 0.072175 * b) / WHITE[1]);
  const z = f((0.0193339 * r + 0.119192 * g + 0.9503041 * b) / WHITE[2]);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

const LINEAR = Float64Array.from({ length: 256 }, (_, byte) => {
  const value = byte / 255;
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
});

function f(t: number): number {
  return t > 216 / 24389 ? Math.cbrt(t) : ((24389 / 27) * t + 16) / 116;
}

function inCorner(position: number): boolean {
  const fromEdge = Math.min(position, 1 - position);
  return fromEdge >= EDGE && fromEdge < CORNER;
}
